/* Inside the store: tables, stored forms, what the files share.
 *
 * Tables of a shard's environment. Integers in keys are big-endian where order matters bytewise,
 * native for MDB_INTEGERKEY tables.
 *   meta     name -> value                       format, actor, counters, schema, watermarks, field state
 *   ids      canonical id -> row u32
 *   records  row u32 -> struct stored_record, registers, context, id, payload
 *   vectors  field << 32 | block -> the vectors of `block_rows` rows, one after the other
 *   log      lseq u64 -> 'R' + row u32 (one per record, at its latest change), or 'T' + id of a tombstone
 *   births   birth lseq u64 -> row u32
 *   tombs    canonical id -> struct stored_tombstone
 *   free     row u32 -> nothing
 *   limbo    row u32 -> nothing
 *   pindex   field u16, kind of key u8, value, chunk u16 -> hash u64, roaring bitmap of rows of the chunk
 *   expiry   expiry_us u64, row u32 -> nothing
 *   applied  incarnation u64, sequence u64 -> outcome u64, lseq u64 of then
 *   graph    field u8, number u64 -> delta of an index */
#ifndef SK_STORE_INTERNAL_H
#define SK_STORE_INTERNAL_H

#include "actors/shard-worker/store/store.h"

#include <lmdb.h>
#include <pthread.h>
#include <roaring/roaring.h>
#include <stdatomic.h>

enum table {
    T_META, T_IDS, T_RECORDS, T_VECTORS, T_LOG, T_BIRTHS, T_TOMBS, T_FREE, T_LIMBO, T_PINDEX,
    T_EXPIRY, T_APPLIED, T_GRAPH, TABLE_COUNT
};

enum { PATH_BYTES = 1024, APPLIED_WINDOW = 4096, INCARNATIONS_MAX = 8, BLOCK_BYTES_MAX = 16384 };

/* A version: hybrid clock (48 bits of ms, 16 of counter), who, the how-manieth of his; and a hash of the
 * content, so that replicas compare without the bytes. */
struct stored_version {
    uint64_t hlc, actor, seq, hash;
};

/* Little-endian, packed by hand into the value; registers: payload first, then each vector field. */
struct stored_record {
    uint8_t format; /* 1 */
    uint8_t flags;  /* 0 */
    uint8_t register_count;
    uint8_t context_count; /* of {actor, hlc} pairs, at most 8 */
    uint8_t id_size;
    uint8_t zero[3];
    uint64_t birth_lseq, lseq, expiry_us;
    uint64_t context_base;
};

struct stored_tombstone {
    uint64_t hlc, actor, seq, lseq;
};

/* A parsed record; spans point into LMDB. */
struct record_view {
    struct stored_record head;
    const uint8_t *registers; /* register_count x stored_version */
    struct sk_id id;
    struct sk_span payload;
};

/* Changes of one payload-index key that wait for the commit. */
struct index_change {
    uint8_t key[512];
    uint16_t key_size;
    roaring_bitmap_t *added, *removed;
};

struct index_changes {
    struct index_change **slots; /* hash table, open addressing */
    size_t capacity, count;
};

/* The block of vectors that is being written. */
struct open_block {
    uint64_t key;
    uint8_t *bytes; /* NULL: none is open */
    bool is_dirty;
};

/* How far the payload index of a field is; stored as it stands. */
struct field_state {
    uint16_t id;
    uint8_t kind;
    uint8_t is_ready;
    uint8_t is_dropping;
    uint8_t zero[3];
    uint32_t next_row; /* building: rows below are indexed */
};

struct field_states {
    struct field_state at[2 * SK_PAYLOAD_FIELDS_MAX];
    unsigned count;
};

/* What every commit writes. */
struct stored_counters {
    uint64_t hlc, seq, lseq, record_count;
    uint32_t row_end, zero;
};

struct sk_store {
    MDB_env *env; /* NULL only after a reopening failed */
    MDB_dbi tables[TABLE_COUNT];
    char folder[PATH_BYTES];
    struct sk_store_config config;
    struct sk_schema schema;
    struct field_states states; /* the writer's; readers take those of their snapshot */
    uint32_t block_rows[SK_VECTOR_FIELDS_MAX];
    uint64_t page_bytes;
    bool is_disk_full; /* the last write that needed the disk did not get it */
    _Atomic bool is_reserve_used;
    uint64_t reserve_map_bytes; /* of the shard when the reserve was made */
    pthread_mutex_t readers_lock;
    struct sk_store_reader *readers;

    /* the open write transaction */
    MDB_txn *txn;
    uint64_t wall_us;
    struct open_block blocks[SK_VECTOR_FIELDS_MAX];
    struct index_changes changes;
    struct sk_buffer scratch;
    uint64_t tombs_from, tombs_from_before; /* where the search for old tombstones goes on in the log */
    /* counters of meta, read at begin and written at commit */
    uint64_t actor;
    struct stored_counters counters;
};

/* known.c */
struct known_rows {
    bool is_on;
    uint32_t generation; /* of what is known now; 0: nothing was yet */
    uint64_t number;     /* of the transaction that it was found in */
    uint64_t *words;
    size_t capacity; /* rows */
};

struct sk_store_reader {
    struct sk_store *store; /* NULL once it is closed */
    struct sk_store_reader *next;
    MDB_txn *txn;
    bool is_active;
    uint64_t wall_us;
    const uint8_t *block; /* of vectors, the last that was asked for; NULL: none yet */
    uint64_t block_key;
    struct known_rows known;
};

/* store.c */
enum sk_err sk_store_fail(struct sk_store *self, int rc, const char *what, struct sk_diag *d);
enum sk_err sk_store_corrupt(struct sk_diag *d, const char *table, uint64_t row, const char *what);
enum sk_err sk_store_meta_put(struct sk_store *self, const char *name, const void *bytes, size_t size,
                              struct sk_diag *d);
bool sk_store_meta_get(const struct sk_store *self, MDB_txn *txn, const char *name, void *out,
                       size_t size);
/* Reads and compares format, actor, counters, schema; writes what differs. schema NULL: as stored. */
enum sk_err sk_store_meta_begin(struct sk_store *self, const struct sk_schema *schema,
                                struct sk_diag *d);
enum sk_err sk_store_check_shape(const struct sk_store *self, const struct sk_schema *schema,
                                 struct sk_diag *d);
uint64_t sk_store_new_hlc(struct sk_store *self);

/* files.c */
enum sk_err sk_files_open(struct sk_store *self, struct sk_diag *d); /* the environment and tables */
bool sk_files_exist(const struct sk_store *self);
bool sk_files_reserve_make(struct sk_store *self);
bool sk_files_reserve_is_small(struct sk_store *self); /* the shard has doubled since it was made */
void sk_files_reserve_give_up(struct sk_store *self);
/* May a write that is no relief try, on a full disk or in a full map: are there free pages inside? */
bool sk_files_has_free_pages(struct sk_store *self);
bool sk_files_map_is_full(struct sk_store *self);
bool sk_files_disk_has(const struct sk_store *self, uint64_t bytes);
uint64_t sk_files_bytes(const struct sk_store *self, const char *name); /* on disk */
enum sk_err sk_files_sync_folder(const char *folder, struct sk_diag *d);
/* An empty folder inside the shard's where a new data.mdb is made; its path goes to path. */
enum sk_err sk_files_making(const struct sk_store *self, char path[PATH_BYTES], struct sk_diag *d);
void sk_files_making_drop(const struct sk_store *self);
/* Puts making/data.mdb in the place of data.mdb at once or not at all, and opens what is there then. */
enum sk_err sk_files_replace(struct sk_store *self, struct sk_diag *d);

/* fields.c */
void sk_states_load(const struct sk_store *self, MDB_txn *txn, struct field_states *out);
enum sk_err sk_states_save(struct sk_store *self, struct sk_diag *d);
void sk_states_follow(struct sk_store *self);
const struct field_state *sk_states_find(const struct field_states *self, uint16_t id);

/* read.c */
/* Ends what the idle readers keep of the environment before it is closed. */
void sk_readers_let_go(struct sk_store *self, bool is_for_good);

/* known.c */
void sk_known_begin(struct sk_store_reader *self);  /* a read transaction has begun */
void sk_known_forget(struct sk_store_reader *self); /* the environment goes */
bool sk_known_record(const struct sk_store_reader *self, uint32_t row, MDB_val *value);
void sk_known_record_is(struct sk_store_reader *self, uint32_t row, MDB_val value);
const uint8_t *sk_known_vector(const struct sk_store_reader *self, unsigned field, uint32_t row);
void sk_known_vector_is(struct sk_store_reader *self, unsigned field, uint32_t row,
                        const uint8_t *vector);
void sk_known_expect(const struct sk_store_reader *self, uint32_t row); /* it will be asked for */

/* rows.c */
enum sk_err sk_record_parse(struct record_view *out, MDB_val value, uint32_t row, struct sk_diag *d);
enum sk_err sk_record_find(const struct sk_store *self, MDB_txn *txn, uint32_t row, MDB_val *value,
                           struct sk_diag *d); /* NOT_FOUND */
enum sk_err sk_record_get(const struct sk_store *self, MDB_txn *txn, uint32_t row,
                          struct record_view *out, struct sk_diag *d); /* NOT_FOUND */
enum sk_err sk_blocks_flush(struct sk_store *self, struct sk_diag *d);
void sk_blocks_forget(struct sk_store *self);
static inline uint64_t sk_block_key(unsigned field, uint32_t block)
{
    return (uint64_t)field << 32 | block;
}

/* tombs.c */
/* A record was deleted: its tombstone, and its change in the log. */
enum sk_err sk_tombs_put(struct sk_store *self, const struct sk_id *id,
                         const struct stored_version *version, struct sk_diag *d);
enum sk_err sk_tombs_forget(struct sk_store *self, const struct sk_id *id, struct sk_diag *d);
/* For compact: a number of LMDB's. */
int sk_tombs_drop_some(struct sk_store *self, unsigned count, bool *is_end);

/* payload_index.c */
enum { KEY_ALL = 0, KEY_EXISTS = 2, KEY_VALUE = 3 };
/* Writes the part of the key before the chunk; returns its size. */
uint16_t sk_index_key(uint8_t *key, uint16_t field, uint8_t kind_of_key, const void *value, size_t size);
/* The ordered 8 bytes, or the hashed or length-prefixed text, of one typed value. */
size_t sk_index_value(const struct sk_typed *typed, uint8_t out[460]);
void sk_put_ordered_i64(uint8_t out[8], int64_t value);
void sk_put_ordered_f64(uint8_t out[8], double value);
uint64_t sk_morton(double lat, double lon);
/* Calls each with every key that a record has; a key may come twice. */
typedef enum sk_err sk_index_each(void *impl, const uint8_t *key, uint16_t size, struct sk_diag *d);
enum sk_err sk_index_own_keys(sk_index_each *each, void *impl, struct sk_diag *d);
enum sk_err sk_index_field_keys(const struct sk_payload_field *field, struct sk_span payload,
                                sk_index_each *each, void *impl, struct sk_diag *d);
enum sk_err sk_index_row(struct sk_store *self, uint32_t row, struct sk_span payload, bool is_added,
                         struct sk_diag *d);
enum sk_err sk_index_row_field(struct sk_store *self, const struct sk_payload_field *field,
                               uint32_t row, struct sk_span payload, bool is_added,
                               struct sk_diag *d);
roaring_bitmap_t *sk_index_bitmap(MDB_val value); /* owned; NULL when the bytes are damaged */
int sk_index_bitmap_put(struct sk_store *self, MDB_val key, roaring_bitmap_t *rows);
enum sk_err sk_index_flush(struct sk_store *self, struct sk_diag *d);
void sk_index_forget(struct sk_store *self);
/* ORs every chunk of a key into out. */
enum sk_err sk_index_or(const struct sk_store *self, MDB_txn *txn, const uint8_t *key, uint16_t size,
                        roaring_bitmap_t *out, struct sk_diag *d);
enum sk_err sk_index_drop_field(struct sk_store *self, uint16_t field, uint32_t *budget,
                                struct sk_diag *d);

/* select.c */
enum sk_err sk_store_select_txn(const struct sk_store *self, MDB_txn *txn, uint64_t wall_us,
                                const struct sk_filter *filter, struct sk_selection *out,
                                struct sk_diag *d);

/* libroaring 0.2.66 does not take NULL. */
static inline void sk_bitmap_free(roaring_bitmap_t *rows)
{
    if (rows != NULL)
        roaring_bitmap_free(rows);
}
static inline MDB_val sk_val(const void *bytes, size_t size)
{
    union {
        const void *in;
        void *out; /* LMDB takes what it does not change as void * */
    } pun = {bytes};
    return (MDB_val){.mv_size = size, .mv_data = pun.out};
}
/* What the log says of a record. */
enum { LOG_ROW_BYTES = 5 };
static inline void sk_log_row(uint8_t out[LOG_ROW_BYTES], uint32_t row)
{
    out[0] = 'R';
    memcpy(out + 1, &row, sizeof row);
}
static inline uint64_t sk_get_be(const uint8_t *at, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}
static inline void sk_put_be(uint8_t *at, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

#endif
