/* Files of vectors and of records. They come from anywhere: every length is checked against the
 * file's own. Functions say on stderr what was wrong and return NULL, -1 or a status. */
#ifndef SK_TOOLS_FILES_H
#define SK_TOOLS_FILES_H

#include "tools/skerry/cli.h"

/* ---- A matrix of vectors in a file: .npy (float16, float32, float64, int8, uint8; either order),
 * .fvecs, .bvecs, each also .gz. Mapped, not read. ---- */

struct matrix;
bool matrix_is_named(const char *path); /* by its ending */
struct matrix *matrix_open(const char *path, int *status);
void matrix_close(struct matrix **self);
uint64_t matrix_rows(const struct matrix *self);
uint32_t matrix_dim(const struct matrix *self);
/* Row as float32; borrowed until the next call. NULL when the file changes its dimension there. */
const float *matrix_row(struct matrix *self, uint64_t row);

/* Whole numbers of a one-dimensional .npy (int32, int64, uint32, uint64): ids, ground truth. */
bool matrix_is_integers(const char *path);
uint64_t *integers_load(const char *path, uint64_t *count, int *status); /* owned: free() */

/* ---- Lines of a text, plain or gzip ---- */

struct lines;
struct lines *lines_open(const char *path, int *status);
void lines_close(struct lines **self);
/* 1: *line is the next one without its end, borrowed until the next call; 0: the end; -1: failed.
 */
int lines_next(struct lines *self, char **line, size_t *size);
uint64_t lines_number(const struct lines *self); /* of the last line, from 1 */
double lines_share(const struct lines *self);    /* of the file's bytes that were read, 0 to 1 */

/* ---- Records in a file ---- */

enum { SOURCE_VECTORS_MAX = 16, SOURCE_NAME_BYTES = 65 };

struct source_vector {
    char name[SOURCE_NAME_BYTES];
    uint32_t dim;
};

struct source_row {
    const float *vector; /* NULL: none; several named ones stand one behind the other */
    uint32_t dim;        /* of all of them together */
    const struct source_vector *names; /* NULL: one without a name */
    unsigned name_count;
    bool has_id;
    struct skerry_id id;
    struct skerry_bytes payload;
    uint32_t ttl_s;
};

/* is_payload: each line is a payload and nothing else (its member id stays in it). kinds: the
 * declared payload fields (name -> kind), for csv; may be NULL; borrowed. */
struct source;
struct source *source_open(const char *path, bool is_payload, const json_t *kinds, int *status);
void source_close(struct source **self);
uint64_t source_rows(const struct source *self); /* 0: not known before the end */
double source_share(const struct source *self);
/* 1: a row, borrowed until the next call; 0: the end; -1: failed. */
int source_next(struct source *self, struct source_row *row);

#endif
