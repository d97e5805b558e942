/* The schema of a collection: what a record of it is made of.
 * On the wire and in files it is one msgpack map (sk_schema_encode). */
#ifndef SK_SCHEMA_H
#define SK_SCHEMA_H

#include "proto/codec.h"

enum {
    SK_VECTOR_FIELDS_MAX = 16,
    SK_PAYLOAD_FIELDS_MAX = 64,
    SK_DIM_MAX = 8192,
    SK_SHARDS_MAX = 64,
    SK_UUID_BYTES = 16,
    SK_M_DEFAULT = 16,
    SK_M_MIN = 4,
    SK_M_MAX = 64,
    SK_EF_CONSTRUCTION_DEFAULT = 200,
    SK_EF_CONSTRUCTION_MIN = 8,
    SK_EF_CONSTRUCTION_MAX = 2000,
    SK_NLIST_MAX = 65536,
    SK_PQ_M_MAX = 1024,
    SK_REFINE_MAX = 100,
};

/* Numbers are stored: append only. Equal to those of kernels.h and index.h. */
enum sk_schema_metric { SK_SCHEMA_L2 = 1, SK_SCHEMA_IP = 2, SK_SCHEMA_COSINE = 3 };
enum sk_schema_index {
    SK_SCHEMA_FLAT = 1,
    SK_SCHEMA_HNSW = 2,
    SK_SCHEMA_IVF_FLAT = 3,
    SK_SCHEMA_IVF_PQ = 4,
    SK_SCHEMA_HYBRID = 5,
};
enum sk_schema_profile { SK_SCHEMA_BALANCED = 0, SK_SCHEMA_SPEED = 1, SK_SCHEMA_MEMORY = 2 };
enum sk_payload_kind {
    SK_PAYLOAD_KEYWORD = 1,
    SK_PAYLOAD_INTEGER = 2,
    SK_PAYLOAD_FLOAT = 3,
    SK_PAYLOAD_BOOL = 4,
    SK_PAYLOAD_DATETIME = 5,
    SK_PAYLOAD_GEO = 6,
};

struct sk_vector_field {
    char name[SK_NAME_BYTES_MAX + 1]; /* "" for the one unnamed field */
    uint32_t dim;
    enum sk_schema_metric metric;
    enum sk_schema_index index;
    uint32_t m;               /* hnsw: 4..64, default 16 */
    uint32_t ef_construction; /* hnsw: 8..2,000, default 200 */
    enum sk_schema_profile profile; /* hnsw */
    uint32_t nlist;  /* ivf_flat, ivf_pq, hybrid: 1..65,536; 0: automatic */
    uint32_t pq_m;   /* ivf_pq, hybrid: even, 2..1,024, at most dim; 0: automatic */
    uint32_t refine; /* ivf_pq, hybrid: 1..100; 0: automatic */
};

struct sk_payload_field {
    char name[SK_NAME_BYTES_MAX + 1]; /* a dotted path into the payload */
    enum sk_payload_kind kind;
    uint16_t id; /* given by the keeper, never used again for another field */
};

struct sk_schema {
    char name[SK_NAME_BYTES_MAX + 1];
    uint8_t uuid[SK_UUID_BYTES];
    uint32_t version; /* rises with every alter_collection */
    uint32_t shard_count;
    uint64_t memory_bytes_max; /* 0 = the node's default */
    uint32_t vector_count;
    struct sk_vector_field vectors[SK_VECTOR_FIELDS_MAX];
    uint32_t field_count;
    struct sk_payload_field fields[SK_PAYLOAD_FIELDS_MAX];
    uint16_t field_id_next; /* of the next payload field */
};

/* From a create_collection request: INVALID or UNKNOWN_FIELD name what is wrong. uuid and version are
 * left 0 for the keeper. */
SK_CHECKED enum sk_err sk_schema_from_request(struct sk_schema *out, const struct sk_request *request,
                                              struct sk_diag *d);
/* What alter_collection changes, on a copy: payload fields added (new ids) or dropped (nil),
 * parameters of indexes (of another type: what is not given is that type's default),
 * memory_bytes_max. version rises by one when anything changed. */
SK_CHECKED enum sk_err sk_schema_alter(struct sk_schema *schema, const struct sk_request *request,
                                       struct sk_diag *d);
void sk_schema_encode(struct sk_buffer *to, const struct sk_schema *schema); /* for the map and files */
/* From a file or a peer: INVALID unless it is one whole good schema. */
SK_CHECKED enum sk_err sk_schema_decode(struct sk_schema *out, struct sk_reader *from,
                                        struct sk_diag *d);
/* The two members `vectors` and `payload` of a description, in the form create_collection takes. */
void sk_schema_describe(struct sk_buffer *to, const struct sk_schema *schema);
/* Index of the vector field; "" or absent means the only one. NOT_FOUND names those there are. */
SK_CHECKED enum sk_err sk_schema_vector(const struct sk_schema *schema, struct sk_span name,
                                        uint32_t *out, struct sk_diag *d);
/* Whether the field's index can search like this: nprobe is for indexes with lists, ef for graphs
 * (and for flat, which is exact whatever it says). INVALID says what to give instead. */
SK_CHECKED enum sk_err sk_schema_check_search(const struct sk_vector_field *field,
                                              const struct sk_request *request, struct sk_diag *d);
bool sk_schema_has_lists(enum sk_schema_index index); /* ivf_flat, ivf_pq, hybrid */
const char *sk_schema_metric_name(enum sk_schema_metric metric);
const char *sk_schema_index_name(enum sk_schema_index index);
const char *sk_schema_profile_name(enum sk_schema_profile profile);
enum { SK_UUID_TEXT_BYTES = 37 };
const char *sk_uuid_text(const uint8_t uuid[SK_UUID_BYTES], char text[SK_UUID_TEXT_BYTES]);
#endif
