/* Between schema.c and schema_index.c only. */
#ifndef SK_SCHEMA_INTERNAL_H
#define SK_SCHEMA_INTERNAL_H

#include "proto/schema.h"

/* b and c may be NULL. */
bool sk_schema_key_is(struct sk_span key, const char *a, const char *b, const char *c);
enum sk_err sk_schema_unknown_key(struct sk_span key, const char *where, const char *const *known,
                                  size_t count, struct sk_diag *d);
enum sk_err sk_schema_read_bounded(struct sk_reader *from, const char *name, uint32_t least,
                                   uint32_t most, uint32_t *out, struct sk_diag *d);

void sk_schema_index_defaults(struct sk_vector_field *out, enum sk_schema_index index);
/* A type's name, or a map of type and parameters, over what *out says now; *seen: which were given. Another
 * type begins with its defaults. */
enum sk_err sk_schema_read_index(struct sk_reader *from, struct sk_vector_field *out, uint32_t *seen,
                                 struct sk_diag *d);
/* Whether what was given goes with the type and the dimension. */
enum sk_err sk_schema_check_index(const struct sk_vector_field *field, uint32_t seen,
                                  struct sk_diag *d);
/* The member `index` of alter_collection. */
enum sk_err sk_schema_alter_index(struct sk_schema *schema, struct sk_span packed, bool *is_changed,
                                  struct sk_diag *d);
void sk_schema_describe_index(struct sk_buffer *to, const struct sk_vector_field *field);

#endif
