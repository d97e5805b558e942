/* The store of one shard: records, ids, versions, change log, payload indexes and index deltas, in one
 * LMDB environment. LMDB is the only truth; every index over it can be made again.
 *
 * Threads: ONE writer (functions that take struct sk_store * between begin and commit); any number of
 * readers, each with its own struct sk_store_reader. Readers never wait for the writer or its fsync.
 * One process opens a shard once.
 *
 * Rows: a record has a 32-bit row number. An upsert of an id that is there takes a new row; the old one
 * goes to limbo and may be used again after sk_store_release_row. A row's life is named by
 * (row, birth_lseq): its vectors never change within it; set_payload keeps row and birth.
 *
 * Errors: DISK_FULL (no space, or the reserve is used and this is no relief), VERSION (format of another
 * release), INTERNAL (stored bytes do not make sense: names table and row), UNAVAILABLE (the system says
 * no), NOMEM. After an error inside a write transaction only sk_store_abort is allowed. */
#ifndef SK_STORE_H
#define SK_STORE_H

#include "proto/filter.h"
#include "proto/records.h"

struct sk_store;           /* opaque */
struct sk_store_reader;    /* opaque */
struct roaring_bitmap_s;   /* libroaring's, for sets of rows */

enum {
    SK_STORE_FORMAT = 1,
    SK_STORE_KNOWN_ROWS_MAX = 1 << 22, /* that a reader remembers the places of */
};

struct sk_store_config {
    const char *folder;       /* made by the caller; borrowed for the call */
    uint64_t map_bytes_max;   /* address space, the file grows as needed; 0 = 64 GiB */
    uint64_t reserve_bytes;   /* kept back on disk for deletes; 0 = 1 MiB */
    uint64_t actor;           /* random; used when the shard is made or was restored; not 0 */
    bool no_sync;             /* simulator only */
};

/* Opens or makes the shard. schema is copied; fields that the stored schema lacks are indexed behind
 * (sk_store_index_step), those it has and schema lacks are dropped behind. */
SK_CHECKED enum sk_err sk_store_open(struct sk_store **out, const struct sk_store_config *config,
                                     const struct sk_schema *schema, struct sk_diag *d);
void sk_store_close(struct sk_store **self); /* no reader may be in a transaction, nor be used again */
/* A newer version of the schema (alter_collection). Writer, outside a transaction; no reader active. */
SK_CHECKED enum sk_err sk_store_set_schema(struct sk_store *self, const struct sk_schema *schema,
                                           struct sk_diag *d);

/* ---- writing ---- */

/* wall_us: for the hybrid clock and expiry; it may jump, versions never go back. is_relief: deletes,
 * index work and compaction, which may use the reserve when the disk is full. */
SK_CHECKED enum sk_err sk_store_begin(struct sk_store *self, uint64_t wall_us, bool is_relief,
                                      struct sk_diag *d);
/* Durable when it returns OK; on failure everything since begin is gone. */
SK_CHECKED enum sk_err sk_store_commit(struct sk_store *self, struct sk_diag *d);
void sk_store_abort(struct sk_store *self); /* nothing when no transaction is open */
/* The disk is full or nearly so: what is written now goes from the reserve, which is for deletes. */
bool sk_store_is_short(const struct sk_store *self);

/* Was this stamped write applied before? *is_applied and its *outcome (a count). UNAVAILABLE when the
 * stamp is older than the window of 4,096 writes. */
SK_CHECKED enum sk_err sk_store_applied_get(struct sk_store *self, uint64_t incarnation,
                                            uint64_t sequence, bool *is_applied, uint64_t *outcome,
                                            struct sk_diag *d);
SK_CHECKED enum sk_err sk_store_applied_put(struct sk_store *self, uint64_t incarnation,
                                            uint64_t sequence, uint64_t outcome, struct sk_diag *d);

/* What a write did to rows; indexes follow it after the commit. */
struct sk_change {
    bool has_new;
    uint32_t row; /* has_new */
    uint64_t lseq;
    bool has_old;  /* a record was there: its row is in limbo now */
    bool was_live; /* and its time was not over */
    uint32_t old_row;
    uint64_t old_lseq; /* birth of the old life */
};
/* row has every vector field (sk_upsert_check). */
SK_CHECKED enum sk_err sk_store_upsert(struct sk_store *self, const struct sk_row *row,
                                       struct sk_change *change, struct sk_diag *d);
/* change->was_live tells whether it was there for those who ask. */
SK_CHECKED enum sk_err sk_store_delete(struct sk_store *self, const struct sk_id *id,
                                       struct sk_change *change, struct sk_diag *d);
SK_CHECKED enum sk_err sk_store_set_payload(struct sk_store *self, const struct sk_id *id,
                                            struct sk_span payload, bool is_replace, bool *was_there,
                                            struct sk_diag *d);
/* Ids of live records that match, in this transaction; *ids is owned by the caller (free). */
SK_CHECKED enum sk_err sk_store_write_select(struct sk_store *self, const struct sk_filter *filter,
                                             struct sk_id **ids, uint32_t *count, struct sk_diag *d);
/* Ids of at most limit records whose time is over. */
SK_CHECKED enum sk_err sk_store_expired(struct sk_store *self, uint32_t limit, struct sk_id **ids,
                                        uint32_t *count, struct sk_diag *d);
/* The index has let go of a row in limbo (for several vector fields: the last of them has). */
SK_CHECKED enum sk_err sk_store_release_row(struct sk_store *self, uint32_t row, struct sk_diag *d);

/* Index deltas of a vector field: numbered from 1 on, in the order of number. */
SK_CHECKED enum sk_err sk_store_delta_put(struct sk_store *self, unsigned field, uint64_t number,
                                          struct sk_span delta, struct sk_diag *d);
SK_CHECKED enum sk_err sk_store_delta_drop(struct sk_store *self, unsigned field,
                                           uint64_t below_number, struct sk_diag *d);
SK_CHECKED enum sk_err sk_store_watermark_put(struct sk_store *self, unsigned field, uint64_t lseq,
                                              struct sk_diag *d);

/* Indexes old rows of fields that alter_collection added and drops those it took away: up to rows_max
 * rows. Opens and commits a transaction of its own. */
SK_CHECKED enum sk_err sk_store_index_step(struct sk_store *self, uint64_t wall_us,
                                           uint32_t rows_max, bool *has_more, struct sk_diag *d);

/* ---- reading ---- */

SK_CHECKED enum sk_err sk_store_reader_new(struct sk_store_reader **out, struct sk_store *store,
                                           struct sk_diag *d);
void sk_store_reader_destroy(struct sk_store_reader **self);
/* From now on it remembers where it has found rows, until the next commit of anybody: for one reader of a
 * shard, that asks for the same rows again and again. Memory: 16 bytes and 8 for each vector field a row,
 * of the rows up to the highest that was asked for. */
void sk_store_reader_remember(struct sk_store_reader *self);
/* A snapshot of what is committed now; records expired at wall_us are not seen. Keep it short: it pins
 * pages. Everything below is borrowed until sk_store_read_end. */
SK_CHECKED enum sk_err sk_store_read_begin(struct sk_store_reader *self, uint64_t wall_us,
                                           struct sk_diag *d);
void sk_store_read_end(struct sk_store_reader *self);

struct sk_record {
    struct sk_id id;
    struct sk_span payload; /* size 0: none */
    uint64_t birth_lseq;
    uint64_t lseq;
    uint64_t expiry_us; /* 0: never */
    uint64_t hlc;       /* of the payload's version, the newest write to the record */
    uint64_t actor;
    uint64_t seq;
};
/* NOT_FOUND (the diag is left empty: it is an ordinary answer). */
SK_CHECKED enum sk_err sk_store_find(struct sk_store_reader *self, const struct sk_id *id,
                                     uint32_t *row, struct sk_diag *d);
SK_CHECKED enum sk_err sk_store_record(struct sk_store_reader *self, uint32_t row,
                                       struct sk_record *out, struct sk_diag *d);
/* dim floats, aligned to 4; NULL when nothing is stored there. For rows of records: whether one is there
 * and not expired is for sk_store_record. */
const float *sk_store_vector(struct sk_store_reader *self, unsigned field, uint32_t row);
/* The vectors of count rows; they, and the records where it is known where they are, are on their way into
 * the processor's caches. */
void sk_store_vectors(struct sk_store_reader *self, unsigned field, const uint32_t *rows,
                      uint32_t count, const float **out);

/* All live rows (expired ones left out), or those that match. */
struct sk_selection {
    struct roaring_bitmap_s *rows; /* owned */
    uint64_t count;
    char warning[200]; /* "" or why a scan was needed */
};
/* filter NULL: all. */
SK_CHECKED enum sk_err sk_store_select(struct sk_store_reader *self, const struct sk_filter *filter,
                                       struct sk_selection *out, struct sk_diag *d);
void sk_selection_deinit(struct sk_selection *self);
bool sk_selection_has(const struct sk_selection *self, uint32_t row);
/* Calls each(impl, row) in ascending order until it returns false. */
void sk_selection_each(const struct sk_selection *self, bool (*each)(void *impl, uint32_t row),
                       void *impl);
/* One bit a row in words[0..word_count); word_count from sk_store_row_words. */
void sk_selection_words(const struct sk_selection *self, uint64_t *words, uint32_t word_count);
uint32_t sk_store_row_words(struct sk_store_reader *self); /* rows ever used / 64, rounded up */
/* Live rows, expired ones that are not swept yet included; cheap. */
SK_CHECKED enum sk_err sk_store_count(struct sk_store_reader *self, uint64_t *count,
                                      struct sk_diag *d);

/* In canonical id order, beginning after `after` (NULL: at the start). false at the end. */
struct sk_store_scroll {
    struct sk_store_reader *reader;
    void *cursor;
    bool is_started;
    struct sk_id after;
    bool has_after;
};
SK_CHECKED enum sk_err sk_store_scroll_begin(struct sk_store_scroll *self,
                                             struct sk_store_reader *reader,
                                             const struct sk_id *after, struct sk_diag *d);
bool sk_store_scroll_next(struct sk_store_scroll *self, uint32_t *row, struct sk_record *record,
                          enum sk_err *err, struct sk_diag *d);
void sk_store_scroll_end(struct sk_store_scroll *self);

/* Rows born above lseq, in birth order, at most capacity: what an index must still link. */
struct sk_birth {
    uint32_t row;
    uint64_t lseq;
};
SK_CHECKED enum sk_err sk_store_births(struct sk_store_reader *self, uint64_t above_lseq,
                                       struct sk_birth *out, uint32_t capacity, uint32_t *count,
                                       struct sk_diag *d);
/* True and the birth of the life that a row has now. */
bool sk_store_row_birth(struct sk_store_reader *self, uint32_t row, uint64_t *birth_lseq);
/* Rows in limbo, ascending, beginning at from_row. */
SK_CHECKED enum sk_err sk_store_limbo(struct sk_store_reader *self, uint32_t from_row, uint32_t *out,
                                      uint32_t capacity, uint32_t *count, struct sk_diag *d);

SK_CHECKED enum sk_err sk_store_watermark(struct sk_store_reader *self, unsigned field,
                                          uint64_t *lseq, struct sk_diag *d);
/* The next delta with a number >= from; NOT_FOUND (empty diag) at the end. */
SK_CHECKED enum sk_err sk_store_delta_get(struct sk_store_reader *self, unsigned field,
                                          uint64_t from, uint64_t *number, struct sk_span *delta,
                                          struct sk_diag *d);
uint64_t sk_store_lseq(struct sk_store_reader *self);          /* the newest */
uint64_t sk_store_next_expiry_us(struct sk_store_reader *self); /* UINT64_MAX: nothing expires */

struct sk_store_stats {
    uint64_t records, tombstones, limbo_rows, free_rows, expiring;
    uint64_t file_bytes; /* on disk, all files of the shard's store */
    uint64_t used_bytes; /* pages in use */
    uint64_t lseq;
    bool is_disk_full;   /* the reserve is in use */
    uint32_t fields_building;
    uint64_t build_done, build_total; /* rows */
};
SK_CHECKED enum sk_err sk_store_get_stats(struct sk_store_reader *self, struct sk_store_stats *out,
                                          struct sk_diag *d);
/* file_bytes alone, as the disk says now. Any thread; it only looks at the names of the files. */
uint64_t sk_store_file_bytes(const struct sk_store *self);

/* ---- looking after it (writer thread, no transaction open) ---- */

struct sk_store_check {
    uint64_t records, checked; /* rows of all tables looked at */
    uint64_t mended;           /* derived entries that were wrong */
};
/* Compares ids, records, log, vectors and content hashes; INTERNAL names the first that is wrong.
 * Payload indexes are derived: what is wrong there is mended. */
SK_CHECKED enum sk_err sk_store_verify(struct sk_store *self, uint64_t wall_us,
                                       struct sk_store_check *out, struct sk_diag *d);
/* Rewrites the file without its free pages, blocks of free rows and tombstones. No reader may be in a
 * transaction. */
SK_CHECKED enum sk_err sk_store_compact(struct sk_store *self, uint64_t *bytes_before,
                                        uint64_t *bytes_after, struct sk_diag *d);
/* A consistent copy into folder (made by the caller, empty): data.mdb and a manifest with its checksum,
 * synced. Writers may go on in the meantime. */
SK_CHECKED enum sk_err sk_store_snapshot(struct sk_store *self, const char *folder, uint64_t *bytes,
                                         struct sk_diag *d);
/* Reads the schema out of a snapshot's manifest and verifies checksum and format. */
SK_CHECKED enum sk_err sk_store_snapshot_schema(const char *folder, struct sk_schema *out,
                                                struct sk_diag *d);
/* Replaces what is in a shard just made (no records yet) by the snapshot; a new actor. */
SK_CHECKED enum sk_err sk_store_restore(struct sk_store *self, const char *folder,
                                        uint64_t *records, struct sk_diag *d);

#endif
