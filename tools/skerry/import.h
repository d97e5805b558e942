/* The parts of `skerry import`: its options and state (import.c), batches of rows (import_batch.c),
 * and the file that remembers how far it came (import_state.c). */
#ifndef SK_TOOLS_IMPORT_H
#define SK_TOOLS_IMPORT_H

#include "tools/skerry/files.h"

#include <limits.h>

enum { IMPORT_WINDOW_MAX = 64 };

struct import_options {
    const char *ids, *payload, *id_field, *using, *metric, *state;
    uint32_t batch, window, limit, ttl_s;
    bool create, restart;
    struct cli_list fields;
};

extern struct import_options import_options;

/* Rows of one request. */
struct batch {
    bool is_used; /* on its way */
    uint64_t ticket;
    uint64_t first_row;
    size_t count;
    size_t bytes;
    unsigned retries;
    uint64_t *numbers;
    char **texts;   /* owned each */
    float *vectors; /* row by row; several named ones of a row stand together */
    size_t vectors_capacity;
    uint32_t dim;
    struct source_vector names[SOURCE_VECTORS_MAX];
    unsigned name_count;
    struct skerry_bytes *payloads; /* owned each: malloc */
    uint32_t *ttl_s;
    bool has_payloads, has_ttl;
};

struct importer {
    const char *collection, *path;
    struct skerry *db;
    struct source *source;
    struct source *payloads; /* beside the vectors; or NULL */
    uint64_t *ids;           /* from --ids .npy */
    uint64_t id_count;
    struct lines *id_lines; /* from --ids text */
    json_t *kinds;          /* declared payload fields */
    struct batch batches[IMPORT_WINDOW_MAX];
    unsigned window;
    struct source_row held; /* read, but of another shape than the batch before it */
    bool is_held;
    uint64_t row;          /* the next one to be read */
    uint64_t acknowledged; /* rows, in this run */
    uint64_t total;        /* 0: not known */
    uint64_t resumed_from;
    double started_s, shown_s, saved_s;
    char state_path[PATH_MAX];
    json_t *identity;
};

bool batch_init(struct batch *self);
void batch_deinit(struct batch *self);
void batch_clear(struct batch *self);
/* Reads rows into an empty batch; *is_at_end where there are no more. A status, after words. */
int batch_fill(struct importer *self, struct batch *batch, bool *is_at_end);
/* The columns of the batch's vectors, cut out of its rows: count in *count, values owned through
 * *values (free()). false: no memory. */
bool batch_columns(const struct batch *self, struct skerry_vectors columns[SOURCE_VECTORS_MAX],
                   size_t *count, float **values);

/* What a remembered position belongs to; owned. */
json_t *import_identity(const struct importer *self, const json_t *description);
void import_choose_state_path(struct importer *self);
/* The rows from the beginning that a run before this one has acknowledged. */
uint64_t import_load_state(struct importer *self);
void import_save_state(struct importer *self);

#endif
