/* What upsert carries, in either form: columns (ids, vectors, payloads, ttl_s) and rows (records) come
 * out of one iterator. And the vectors of a search. Nothing is allocated; spans are borrowed from the
 * frame. Thread: any, one iterator each. */
#ifndef SK_RECORDS_H
#define SK_RECORDS_H

#include "proto/schema.h"

/* One vector on the wire: bin of dim float32 little-endian (any alignment), or an array of numbers. */
struct sk_vector_view {
    struct sk_span bin;    /* bytes NULL: an array */
    struct sk_span values; /* of an array: its packed members */
    uint32_t dim;
};

/* One value as a vector. INVALID unless a bin of a multiple of 4 bytes or an array of numbers. */
SK_CHECKED enum sk_err sk_vector_view_read(struct sk_reader *from, struct sk_vector_view *out,
                                           struct sk_diag *d);
/* Writes view->dim floats. False when a number is NaN or infinite (as a float32). */
bool sk_vector_view_copy(const struct sk_vector_view *view, float *out);

/* One row of an upsert. */
struct sk_row {
    struct sk_id id;
    uint32_t vector_mask;                                 /* bit f: vectors[f] is given */
    struct sk_vector_view vectors[SK_VECTOR_FIELDS_MAX]; /* by field of the schema */
    struct sk_span payload;                               /* a packed map; bytes NULL for none */
    bool has_ttl;
    double ttl_s; /* seconds from now, > 0 */
};

struct sk_rows {
    const struct sk_schema *schema;
    const struct sk_request *request;
    uint32_t count;
    uint32_t at;
    struct sk_reader ids;
    struct sk_reader records;
    struct sk_reader payloads;
    struct sk_reader ttls;
    bool ttl_is_one;
    double ttl_one;
    struct {
        bool is_given;
        bool is_matrix;         /* one bin of n x dim */
        struct sk_span matrix;
        struct sk_reader rows;  /* else an array of vectors */
    } columns[SK_VECTOR_FIELDS_MAX];
};

/* The request is an upsert that sk_request_decode let through. Errors name the field and row. */
SK_CHECKED enum sk_err sk_rows_begin(struct sk_rows *self, const struct sk_schema *schema,
                                     const struct sk_request *request, struct sk_diag *d);
/* False at the end (*err OK) or at the first fault (*err says). A row without a vector for some field of
 * the schema is let through here; sk_upsert_check refuses it. */
bool sk_rows_next(struct sk_rows *self, struct sk_row *out, enum sk_err *err, struct sk_diag *d);

/* Everything that must hold before anything is written: every row has every vector field with its
 * dimension, finite, not zero under cosine; payloads fit their limits and declared kinds; ttl_s > 0.
 * scratch has room for SK_DIM_MAX floats. *count: rows. */
SK_CHECKED enum sk_err sk_upsert_check(const struct sk_schema *schema,
                                       const struct sk_request *request, float *scratch,
                                       uint32_t *count, struct sk_diag *d);

/* The queries of a search: one (vector) or many (vectors). */
struct sk_queries {
    uint32_t count;
    bool is_many; /* the reply has a list of lists */
    uint32_t dim;
    struct sk_span matrix;
    struct sk_reader rows;
    uint32_t at;
};
/* For a field of dimension dim: DIM_MISMATCH where it differs. Not for `like`. */
SK_CHECKED enum sk_err sk_queries_begin(struct sk_queries *self, const struct sk_request *request,
                                        uint32_t dim, struct sk_diag *d);
/* Writes dim floats; NaN, infinity and (under cosine) zero are INVALID. NOT_FOUND past the end. */
SK_CHECKED enum sk_err sk_queries_next(struct sk_queries *self, enum sk_schema_metric metric,
                                       float *out, struct sk_diag *d);

#endif
