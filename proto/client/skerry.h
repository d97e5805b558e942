/* libskerry: the C client of a Skerry node.
 *
 *   struct skerry_error error;
 *   struct skerry *db = skerry_connect("DIR", NULL, &error);
 *   struct skerry_search query = {.collection = "docs", .vectors = v, .dim = 384, .limit = 10};
 *   struct skerry_hits *hits = NULL;
 *   if (db == NULL || skerry_search(db, &query, &hits, &error) != SKERRY_OK)
 *       fprintf(stderr, "%s: %s\n", error.name, error.message);
 *
 * Calls: every call returns an enum skerry_code and fills the error struct only when it fails;
 * outputs are then NULL or 0. Results are owned by the caller: one free function for each kind.
 * Deadlines: every call ends by its deadline (milliseconds from now; 0 means the handle's default,
 * 5,000), whatever the node does.
 * Threads: any number of threads may call on one handle at the same time; their requests share one
 * connection and do not wait for each other. Messages are sent and received on the calling threads.
 * skerry_close wants no call running. A handle does not survive fork(): calls in the child fail.
 * Writes: a write that ends with `deadline` or `unavailable` may have been applied or not (outcome
 * unknown); the library never sends a request twice.
 * Structs that you fill: set what you need and leave the rest zero ({.collection = ...} does that);
 * zero or NULL means the default. Members named `reserved` must stay zero. */
#ifndef SKERRY_H
#define SKERRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKERRY_API __attribute__((visibility("default")))

/* The numbers of the wire; SURFACE and PROTOCOL.md list them. */
enum skerry_code {
    SKERRY_OK = 0,
    SKERRY_OUT_OF_MEMORY = 1,
    SKERRY_INVALID = 2,
    SKERRY_UNKNOWN_FIELD = 3,
    SKERRY_BUSY = 4,
    SKERRY_TOO_LARGE = 5,
    SKERRY_EXISTS = 6,
    SKERRY_DIM_MISMATCH = 7,
    SKERRY_UNAUTHORIZED = 8,
    SKERRY_FORBIDDEN = 9,
    SKERRY_DEADLINE = 10,
    SKERRY_UNAVAILABLE = 11,
    SKERRY_NOT_FOUND = 12,
    SKERRY_DISK_FULL = 13,
    SKERRY_VERSION = 14,
    SKERRY_INTERNAL = 15,
};

/* Written by a failing call. A node newer than this library may use a code that is not in the enum.
 */
struct skerry_error {
    enum skerry_code code;
    bool retriable;      /* the same request may succeed later */
    bool is_unreachable; /* this library could not talk to the node at all */
    char name[24];       /* "not_found" */
    char field[80];      /* the request field at fault, "" where none */
    char message[480];   /* what was wrong and what would be right, without the name before it */
};

/* "0.1.0": of the library that is loaded, not of this header. */
SKERRY_API const char *skerry_version(void);
/* "not_found"; "unknown" for a number that this library does not know. */
SKERRY_API const char *skerry_code_name(enum skerry_code code);

/* ---- Connection ---- */

struct skerry; /* opaque: one connection to one node */

struct skerry_options {
    const char *server_key; /* tcp only: the node's public key, 40 characters of Z85, or a file */
    const char *key_file;   /* tcp only: the client's key file (`skerry keys make`), mode 0600 */
    const char *public_key; /* tcp only, instead of key_file: both keys as Z85 text */
    const char *secret_key; /* copied and wiped at close */
    uint32_t connect_deadline_ms; /* how long to try to reach the node; default 2,000 */
    uint32_t deadline_ms;         /* of calls that name none; default 5,000 */
    uint64_t reserved[6];
};

/* target: a node's folder (its local socket), "ipc://PATH", or "tcp://HOST:PORT" with keys.
 * Returns NULL and fills error when the node does not answer a ping before connect_deadline_ms:
 *   unavailable   nothing listens there, or no route
 *   unauthorized  the handshake was refused: the node does not know the client's key, or the server
 *                 key is not this node's
 *   version       something answers that is not a Skerry node of this protocol
 * options may be NULL for a local node. */
SKERRY_API struct skerry *skerry_connect(const char *target, const struct skerry_options *options,
                                         struct skerry_error *error);
SKERRY_API void skerry_close(struct skerry **self); /* sets *self to NULL; safe on NULL */
/* Borrowed until close: the node's public key and version as its ping told them. */
SKERRY_API const char *skerry_node_key(const struct skerry *self);
SKERRY_API const char *skerry_node_version(const struct skerry *self);

/* ---- Values ---- */

/* A record id: the text where text is not NULL (a UUID, or 1 to 64 bytes of UTF-8), else the
 * number. */
struct skerry_id {
    const char *text;
    uint64_t number;
};

/* Many ids. numbers alone, texts alone, or both: then row i is texts[i] where that is not NULL. */
struct skerry_ids {
    size_t count;
    const uint64_t *numbers;
    const char *const *texts;
};

/* A run of bytes, borrowed. bytes NULL means absent. */
struct skerry_bytes {
    const void *bytes;
    size_t size;
};

/* One column of vectors: row-major float32. */
struct skerry_vectors {
    const char *name; /* NULL for the only vector field of a collection */
    const float *values;
    uint32_t dim;
};

/* A filter: JSON text, or the same as msgpack. At most one of the two. */
struct skerry_filter {
    const char *json;
    struct skerry_bytes msgpack;
};

/* ---- Replies ---- */

struct skerry_reply; /* opaque, owned: one reply of the node as it came */

SKERRY_API void skerry_reply_free(struct skerry_reply **self);
/* The whole msgpack map; borrowed until the reply is freed. */
SKERRY_API struct skerry_bytes skerry_reply_bytes(const struct skerry_reply *self);
/* The reply as JSON text without the members v, id and ok; owned, end it with skerry_text_free.
 * NULL when out of memory, or when the reply has no frame or holds what JSON cannot. Vectors become
 * arrays of numbers, other binary values base64 text. */
SKERRY_API char *skerry_reply_json(const struct skerry_reply *self);
SKERRY_API void skerry_text_free(char **text);
/* SKERRY_OK, or the error that the node (or the connection) answered with. */
SKERRY_API enum skerry_code skerry_reply_error(const struct skerry_reply *self,
                                               struct skerry_error *error);
/* A member of the reply by its name: an unsigned integer. false when there is none of that kind. */
SKERRY_API bool skerry_reply_u64(const struct skerry_reply *self, const char *name, uint64_t *out);

/* Any operation. fields: a msgpack map of the request's fields without v, op, id and deadline_ms;
 * NULL bytes for none. This is how operations are reached that have no function here. */
SKERRY_API enum skerry_code skerry_call(struct skerry *self, const char *op,
                                        struct skerry_bytes fields, uint32_t deadline_ms,
                                        struct skerry_reply **out, struct skerry_error *error);
/* The same with the fields as the text of a JSON object ("{}" or NULL for none). */
SKERRY_API enum skerry_code skerry_call_json(struct skerry *self, const char *op,
                                             const char *fields, uint32_t deadline_ms,
                                             struct skerry_reply **out, struct skerry_error *error);

/* Many requests in flight from one thread: submit returns once the request is on its way, poll
 * gives the replies in the order in which they come. A submitted request always ends: with its
 * reply, or with an error reply when its deadline passed or the connection was lost. */
SKERRY_API enum skerry_code skerry_submit(struct skerry *self, const char *op,
                                          struct skerry_bytes fields, uint32_t deadline_ms,
                                          uint64_t *ticket, struct skerry_error *error);
/* Waits up to timeout_ms (0: look, do not wait) for a submitted request of any thread to end.
 * SKERRY_OK with *out NULL: none ended in that time, or none is in flight. */
SKERRY_API enum skerry_code skerry_poll(struct skerry *self, uint32_t timeout_ms, uint64_t *ticket,
                                        struct skerry_reply **out, struct skerry_error *error);
/* Submitted requests that have not been polled yet. */
SKERRY_API size_t skerry_in_flight(struct skerry *self);

/* ---- Node and collections ---- */

struct skerry_vector_field {
    const char *name;   /* NULL for the only one */
    uint32_t dim;       /* 1 to 8,192 */
    const char *metric; /* "cosine" (default), "ip" or "l2" */
    const char *index;  /* "hnsw" (default), "flat", "ivf_flat", "ivf_pq" or "hybrid" */
    /* 0 and NULL: the default. A parameter that the index does not take is refused by the node. */
    uint32_t m;               /* hnsw: 4 to 64, default 16 */
    uint32_t ef_construction; /* hnsw: 8 to 2,000, default 200 */
    const char *profile;      /* hnsw: "balanced" (default), "speed" or "memory" */
    uint32_t nlist;           /* ivf_flat, ivf_pq, hybrid: lists; default automatic */
    uint32_t pq_m;            /* ivf_pq, hybrid: parts of a code, even; default automatic */
    uint32_t refine; /* ivf_pq, hybrid: so many times limit are scored again; default automatic */
    uint32_t reserved_u32;
    uint64_t reserved[2];
};

struct skerry_payload_field {
    const char *name;
    const char *kind; /* keyword, integer, float, bool, datetime or geo */
};

struct skerry_collection_options {
    const char *name;
    const struct skerry_vector_field *vectors;
    size_t vector_count;
    const struct skerry_payload_field *fields;
    size_t field_count;
    uint32_t shards; /* 0: the node decides */
    uint32_t deadline_ms;
    uint64_t memory_bytes_max; /* budget of its indexes; 0: the node's */
    uint64_t reserved[5];
};

SKERRY_API enum skerry_code skerry_ping(struct skerry *self, uint32_t deadline_ms,
                                        struct skerry_error *error);
SKERRY_API enum skerry_code skerry_info(struct skerry *self, struct skerry_reply **out,
                                        struct skerry_error *error);
SKERRY_API enum skerry_code skerry_stats(struct skerry *self, struct skerry_reply **out,
                                         struct skerry_error *error);
SKERRY_API enum skerry_code skerry_topology(struct skerry *self, struct skerry_reply **out,
                                            struct skerry_error *error);
SKERRY_API enum skerry_code
skerry_create_collection(struct skerry *self, const struct skerry_collection_options *options,
                         struct skerry_error *error);
SKERRY_API enum skerry_code skerry_list_collections(struct skerry *self, struct skerry_reply **out,
                                                    struct skerry_error *error);
SKERRY_API enum skerry_code skerry_describe_collection(struct skerry *self, const char *collection,
                                                       struct skerry_reply **out,
                                                       struct skerry_error *error);
SKERRY_API enum skerry_code skerry_drop_collection(struct skerry *self, const char *collection,
                                                   struct skerry_error *error);
/* changes: the request's fields as a JSON object: {"payload": {"year": "integer"}}, {"index": "ivf_pq"},
 * {"index": {"profile": "memory"}}; see the protocol. An index changes behind; searches go on. */
SKERRY_API enum skerry_code skerry_alter_collection(struct skerry *self, const char *collection,
                                                    const char *changes, struct skerry_reply **out,
                                                    struct skerry_error *error);
/* Returns when the indexes have caught up with the writes, or at the deadline. */
SKERRY_API enum skerry_code skerry_wait_indexed(struct skerry *self, const char *collection,
                                                uint32_t deadline_ms, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_verify(struct skerry *self, const char *collection,
                                          uint32_t deadline_ms, struct skerry_reply **out,
                                          struct skerry_error *error);
SKERRY_API enum skerry_code skerry_compact(struct skerry *self, const char *collection,
                                           uint32_t deadline_ms, struct skerry_reply **out,
                                           struct skerry_error *error);
/* name: a name in the node's snapshots/, never a path. */
SKERRY_API enum skerry_code skerry_snapshot(struct skerry *self, const char *collection,
                                            const char *name, uint32_t deadline_ms,
                                            struct skerry_reply **out, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_restore(struct skerry *self, const char *collection,
                                           const char *name, uint32_t deadline_ms,
                                           struct skerry_reply **out, struct skerry_error *error);
/* public_key: 40 characters of Z85 (zmq_curve_keypair makes a pair; the secret half stays with the
 * client). role: "admin", "write" or "read". */
SKERRY_API enum skerry_code skerry_create_key(struct skerry *self, const char *name,
                                              const char *public_key, const char *role,
                                              struct skerry_reply **out,
                                              struct skerry_error *error);
SKERRY_API enum skerry_code skerry_revoke_key(struct skerry *self, const char *name,
                                              struct skerry_error *error);
SKERRY_API enum skerry_code skerry_list_keys(struct skerry *self, struct skerry_reply **out,
                                             struct skerry_error *error);

/* ---- Records ---- */

/* At most 10,000 rows and a frame of 32 MiB a request. Each record is replaced whole. */
struct skerry_upsert {
    const char *collection;
    struct skerry_ids ids;
    const struct skerry_vectors *vectors; /* ids.count rows in each column */
    size_t vector_count;                  /* columns */
    const struct skerry_bytes *payloads;  /* ids.count msgpack maps (absent: none), or NULL */
    struct skerry_bytes payload_list;     /* instead: all of them as one msgpack array */
    const uint32_t *ttl_s;                /* ids.count (0: for ever), or NULL */
    uint32_t ttl_s_all;                   /* instead: one for all of them */
    uint32_t deadline_ms;
    uint64_t reserved[6];
};

struct skerry_search {
    const char *collection;
    const float *vectors; /* query_count x dim; or like */
    size_t query_count;   /* 0 means 1 */
    uint32_t dim;
    const struct skerry_id *like; /* the neighbours of this record, without itself */
    const char *vector_name;      /* "using": which vector field */
    uint32_t limit;               /* default 10 */
    uint32_t ef; /* hnsw: beam, default 64; at most one of ef, nprobe and recall */
    struct skerry_filter filter;
    const float *score_threshold; /* the worst score let in */
    bool with_payload;
    bool with_vector;
    bool exact;
    uint32_t deadline_ms;
    const char *const
        *payload_keys; /* these members of the payload only, instead of with_payload */
    size_t payload_key_count;
    double recall;   /* share of the true nearest that is wanted, 0.5 to 0.999; 0: no target */
    uint32_t nprobe; /* ivf_flat, ivf_pq, hybrid: lists looked at; default automatic */
    uint32_t reserved_u32;
    uint64_t reserved[2];
};

struct skerry_hit {
    struct skerry_id id;
    float score;
    struct skerry_bytes payload; /* msgpack map; absent where not asked for */
    /* The vector where it was asked for: float32, little-endian, perhaps not aligned: copy it out.
     * In a collection with named vectors a msgpack map name -> vector is in vector_map instead. */
    struct skerry_bytes vector;
    struct skerry_bytes vector_map;
};

/* Owned: skerry_hits_free. What it points to lives as long. */
struct skerry_hits {
    size_t query_count;
    const size_t *starts; /* query_count + 1: the hits of query q are hits[starts[q]] to
                             hits[starts[q+1]-1] */
    const struct skerry_hit *hits;
    bool exact;
    bool more; /* a radius search had more than limit */
    uint32_t shards_asked;
    uint32_t shards_answered; /* fewer: the answer is partial */
    uint64_t took_us;
    char source[24];
    char warning[240]; /* "" where none */
};

struct skerry_record {
    bool is_found; /* get: false where there is no such record; the rest is then zero */
    struct skerry_id id;
    struct skerry_bytes payload;
    struct skerry_bytes vector;
    struct skerry_bytes vector_map;
};

/* Owned: skerry_records_free. What it points to lives as long. */
struct skerry_records {
    size_t count;
    const struct skerry_record *records;
    struct skerry_bytes cursor; /* scroll: give it to the next call; absent at the end */
};

struct skerry_scroll {
    const char *collection;
    uint32_t limit;
    struct skerry_bytes cursor; /* absent: from the beginning */
    struct skerry_filter filter;
    bool with_payload;
    bool with_vector;
    uint32_t deadline_ms;
    uint64_t reserved[6];
};

SKERRY_API enum skerry_code skerry_upsert(struct skerry *self, const struct skerry_upsert *request,
                                          uint64_t *upserted, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_upsert_submit(struct skerry *self,
                                                 const struct skerry_upsert *request,
                                                 uint64_t *ticket, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_delete(struct skerry *self, const char *collection,
                                          const struct skerry_ids *ids, uint32_t deadline_ms,
                                          uint64_t *deleted, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_delete_where(struct skerry *self, const char *collection,
                                                const struct skerry_filter *filter,
                                                uint32_t deadline_ms, uint64_t *deleted,
                                                struct skerry_error *error);
SKERRY_API enum skerry_code skerry_get(struct skerry *self, const char *collection,
                                       const struct skerry_ids *ids, bool with_payload,
                                       bool with_vector, uint32_t deadline_ms,
                                       struct skerry_records **out, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_search(struct skerry *self, const struct skerry_search *request,
                                          struct skerry_hits **out, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_search_submit(struct skerry *self,
                                                 const struct skerry_search *request,
                                                 uint64_t *ticket, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_scroll(struct skerry *self, const struct skerry_scroll *request,
                                          struct skerry_records **out, struct skerry_error *error);
SKERRY_API enum skerry_code skerry_count(struct skerry *self, const char *collection,
                                         const struct skerry_filter *filter, uint32_t deadline_ms,
                                         uint64_t *count, struct skerry_error *error);
/* payload: a JSON object; mode "merge" (NULL; a null member removes that key) or "replace". One of
 * ids and filter. */
SKERRY_API enum skerry_code
skerry_set_payload(struct skerry *self, const char *collection, const struct skerry_ids *ids,
                   const struct skerry_filter *filter, const char *payload, const char *mode,
                   uint32_t deadline_ms, uint64_t *updated, struct skerry_error *error);
/* The hits or records of a reply that skerry_poll or skerry_call gave. The reply is taken (set to
 * NULL) when this succeeds. */
SKERRY_API enum skerry_code skerry_reply_hits(struct skerry_reply **reply, struct skerry_hits **out,
                                              struct skerry_error *error);
SKERRY_API enum skerry_code skerry_reply_records(struct skerry_reply **reply,
                                                 struct skerry_records **out,
                                                 struct skerry_error *error);
SKERRY_API void skerry_hits_free(struct skerry_hits **self);
SKERRY_API void skerry_records_free(struct skerry_records **self);

/* ---- JSON and msgpack ---- */

/* One JSON value to msgpack: integers stay integers (64 bits), other numbers become float64. Owned,
 * end it with skerry_bytes_free. INVALID names the byte where the text stops being JSON; nesting
 * over 32 is refused. A member named twice is passed on: the node refuses it. */
SKERRY_API enum skerry_code skerry_json_to_msgpack(const char *json, size_t size,
                                                   struct skerry_bytes *out,
                                                   struct skerry_error *error);
/* One msgpack value to JSON text in UTF-8; owned, end it with skerry_text_free. */
SKERRY_API enum skerry_code skerry_msgpack_to_json(struct skerry_bytes msgpack, char **out,
                                                   struct skerry_error *error);
SKERRY_API void skerry_bytes_free(struct skerry_bytes *bytes);

#ifdef __cplusplus
}
#endif
#endif
