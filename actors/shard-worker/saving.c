/* What the writer lane keeps of an index on disk, and the rows that died.
 *
 * A row that died leaves the indexes once no read job can want it (dying), and its number goes back to
 * the store once every index has let go of it (limbo): in the transaction that holds the delta which
 * says so. A checkpoint is one file, written in slices, that makes the deltas before it needless. */
#include "actors/shard-worker/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    CHECKPOINT_BYTES_MIN = 4 * 1024 * 1024, /* of log, while busy */
    CHECKPOINT_SLICE_BYTES = 2 * 1024 * 1024,
    CHECKPOINT_REST_US = 60 * 1000 * 1000,  /* after one that failed: it must not fill a full disk again */
    UNLOGGED_BYTES_MAX = 8 * 1024 * 1024,
    RELEASE_AT_ONCE = 4096,
    CHECKPOINT_MAGIC = 0x314B4353, /* "SCK1" */
};

/* In front of the index's own image: whose it is and which deltas follow it. */
struct checkpoint_head {
    uint32_t magic;
    uint32_t field;
    uint64_t delta_next;
    uint8_t uuid[SK_UUID_BYTES];
    uint32_t shard;
    uint32_t reserved;
};
_Static_assert(sizeof(struct checkpoint_head) == 40, "the head of a checkpoint has no padding");

/* ---- dead rows ---- */

static bool is_pending(const struct shard *shard, uint64_t lseq)
{
    for (unsigned f = 0; f < shard->field_count; f++) {
        uint32_t row;
        uint64_t front;
        const float *vector;
        if (sk_pending_front(&shard->fields[f].pending, &row, &front, &vector) && front <= lseq)
            return true;
    }
    return false;
}

bool is_dying_due(const struct shard *shard, uint64_t reads_ended)
{
    if (shard->dying.count == 0)
        return false;
    const struct dead_row *first = &shard->dying.rows[shard->dying.first];
    return first->after <= reads_ended && !is_pending(shard, first->lseq);
}

/* Out of the indexes go rows that no read job can want any more. */
enum sk_err bury_rows(struct shard *shard, uint64_t reads_ended, struct sk_diag *d)
{
    while (is_dying_due(shard, reads_ended)) {
        const struct dead_row row = shard->dying.rows[shard->dying.first];
        for (unsigned f = 0; f < shard->field_count; f++) {
            struct field *field = &shard->fields[f];
            struct sk_diag ignored = {0};
            if (field->index != NULL && sk_index_has(field->index, row.row, row.lseq)) {
                enum sk_err rc = sk_index_remove(field->index, row.row, row.lseq, &ignored);
                SK_CHECK(rc == SK_ERR_OK);
                field->has_more = true; /* enough of them may want a sweep */
                field->has_dead = true;
                field->changed_us = now_us(shard->worker);
            }
            if (field->heir != NULL && sk_index_has(field->heir, row.row, row.lseq)) {
                enum sk_err rc = sk_index_remove(field->heir, row.row, row.lseq, &ignored);
                SK_CHECK(rc == SK_ERR_OK);
            }
        }
        enum sk_err rc = dead_rows_push(&shard->limbo, row, d);
        if (rc != SK_ERR_OK)
            return rc;
        shard->dying.first++;
        shard->dying.count--;
    }
    if (shard->dying.count == 0)
        shard->dying.first = 0;
    return SK_ERR_OK;
}

static bool is_let_go(const struct shard *shard, uint32_t row)
{
    for (unsigned f = 0; f < shard->field_count; f++) {
        const struct field *field = &shard->fields[f];
        if (field->state == FIELD_UNLOADED || field->is_checkpointing ||
            (field->index != NULL && !sk_index_row_is_free(field->index, row)) ||
            (field->heir != NULL && !sk_index_row_is_free(field->heir, row)))
            return false;
    }
    return true;
}

bool is_release_due(const struct shard *shard)
{
    size_t look = shard->limbo.count < 64 ? shard->limbo.count : 64;
    for (size_t i = 0; i < look; i++)
        if (is_let_go(shard, shard->limbo.rows[shard->limbo.first + i].row))
            return true;
    return false;
}

/* ---- saving ---- */

static enum sk_err take_delta(struct field *field, struct sk_diag *d)
{
    struct sk_span delta;
    uint64_t watermark;
    if (field->index == NULL || sk_index_delta_pending_bytes(field->index) == 0)
        return SK_ERR_OK;
    sk_index_take_delta(field->index, &delta, &watermark);
    if (delta.size == 0 || field->is_unlogged)
        return SK_ERR_OK;
    uint32_t size = (uint32_t)delta.size;
    sk_buffer_append(&field->unsaved, &size, sizeof size);
    sk_buffer_append(&field->unsaved, delta.bytes, delta.size);
    return sk_buffer_check(&field->unsaved, d);
}

static enum sk_err put_field(struct field *field, struct sk_diag *d)
{
    struct sk_store *store = field->shard->store;
    enum sk_err rc = take_delta(field, d);
    uint64_t number = field->delta_next;
    for (size_t at = 0; rc == SK_ERR_OK && at < field->unsaved.size; number++) {
        uint32_t size;
        memcpy(&size, field->unsaved.bytes + at, sizeof size);
        rc = sk_store_delta_put(store, field->at, number,
                                sk_span_of(field->unsaved.bytes + at + sizeof size, size), d);
        at += sizeof size + size;
    }
    if (rc == SK_ERR_OK && field->index != NULL && field->unsaved.size != 0)
        rc = sk_store_watermark_put(store, field->at, sk_index_watermark(field->index), d);
    if (rc == SK_ERR_OK && field->delta_drop != 0)
        rc = sk_store_delta_drop(store, field->at, field->delta_drop, d);
    field->delta_put = number;
    return rc;
}

enum sk_err saving_put(struct shard *shard, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    for (unsigned f = 0; f < shard->field_count && rc == SK_ERR_OK; f++)
        if (shard->fields[f].state != FIELD_UNLOADED)
            rc = put_field(&shard->fields[f], d);
    /* the deltas that say the rows are free ride in the same transaction */
    struct dead_rows *limbo = &shard->limbo;
    shard->released = 0;
    size_t look = limbo->count < RELEASE_AT_ONCE ? limbo->count : RELEASE_AT_ONCE;
    for (size_t i = 0; i < look && rc == SK_ERR_OK; i++) {
        struct dead_row *at = &limbo->rows[limbo->first + i];
        if (!is_let_go(shard, at->row))
            continue;
        rc = sk_store_release_row(shard->store, at->row, d);
        struct dead_row *front = &limbo->rows[limbo->first + shard->released++];
        struct dead_row moved = *front;
        *front = *at;
        *at = moved;
    }
    return rc;
}

void saving_saved(struct shard *shard)
{
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct field *field = &shard->fields[f];
        if (field->state == FIELD_UNLOADED)
            continue;
        field->delta_next = field->delta_put;
        field->delta_drop = 0;
        sk_buffer_clear(&field->unsaved);
    }
    shard->limbo.first += shard->released;
    shard->limbo.count -= shard->released;
    shard->released = 0;
    if (shard->limbo.count == 0)
        shard->limbo.first = 0;
}

/* Nothing of the index on disk is of use any more. */
static void stop_logging(struct field *field)
{
    field->is_unlogged = true;
    field->delta_drop = field->delta_next;
    sk_buffer_clear(&field->unsaved);
    field->checkpoint_rest_us = now_us(field->shard->worker) + CHECKPOINT_REST_US;
}

static void checkpoint_failed(struct field *field)
{
    sk_file_abort(&field->checkpoint);
    field->is_checkpointing = false;
    field->checkpoint_rest_us = now_us(field->shard->worker) + CHECKPOINT_REST_US;
    if (field->is_image_gone) /* deltas were taken for an image that there will not be */
        stop_logging(field);
}

void saving_forget(struct field *field)
{
    char path[SK_PATH_BYTES];
    struct sk_diag ignored = {0};
    if (field->is_checkpointing) {
        sk_index_checkpoint_abort(field->index);
        checkpoint_failed(field);
    }
    if (checkpoint_path(field, path, &ignored) == SK_ERR_OK)
        (void)unlink(path);
    field->is_image_gone = true;
    stop_logging(field);
}

bool saving_give_way(struct shard *shard)
{
    bool is_giving = false;
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct field *field = &shard->fields[f];
        if (field->index == NULL || field->is_unlogged)
            continue;
        saving_forget(field);
        is_giving = true;
    }
    return is_giving;
}

static enum sk_err save_once(struct writer *writer, struct sk_diag *d)
{
    struct shard *shard = writer->shard;
    if (sk_store_is_short(shard->store)) /* the reserve is for deletes, not for deltas */
        (void)saving_give_way(shard);
    enum sk_err rc = sk_store_begin(shard->store, wall_us(writer->worker), true, d);
    if (rc != SK_ERR_OK)
        return rc;
    rc = saving_put(shard, d);
    if (rc != SK_ERR_OK) {
        sk_store_abort(shard->store);
        return rc;
    }
    rc = sk_store_commit(shard->store, d);
    if (rc == SK_ERR_OK) {
        saving_saved(shard);
        writer->commits++;
    }
    return rc;
}

void turn_save(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    enum sk_err rc = save_once(writer, &writer->diag);
    if (rc == SK_ERR_DISK_FULL && saving_give_way(writer->shard))
        rc = save_once(writer, &writer->diag);
    writer->code = rc;
}

void turn_fields(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    writer->code = sk_store_index_step(writer->shard->store, wall_us(writer->worker), 512,
                                       &writer->shard->is_loading_fields, &writer->diag);
}

uint64_t unsaved_bytes(const struct shard *shard)
{
    uint64_t bytes = 0;
    for (unsigned f = 0; f < shard->field_count; f++) {
        const struct field *field = &shard->fields[f];
        uint64_t pending = field->index != NULL ? sk_index_delta_pending_bytes(field->index) : 0;
        if (!field->is_unlogged || pending >= UNLOGGED_BYTES_MAX) /* else they can wait to be forgotten */
            bytes += pending;
        bytes += field->unsaved.size + (field->delta_drop != 0 ? 1 : 0);
    }
    return bytes;
}

/* ---- checkpoints: reading ---- */

enum sk_err checkpoint_path(const struct field *field, char path[SK_PATH_BYTES],
                                   struct sk_diag *d)
{
    return sk_path(path, d, "%s/index-%u.ckpt", field->shard->folder, field->at);
}

static bool read_stream(void *impl, void *bytes, size_t size)
{
    return fread(bytes, 1, size, impl) == size;
}

/* NOT_FOUND: there is none, which is how every index begins. */
enum sk_err checkpoint_load(struct field *field, const struct sk_index_params *params,
                              const struct sk_index_source *source, uint64_t *delta_from,
                              struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    enum sk_err rc = checkpoint_path(field, path, d);
    if (rc != SK_ERR_OK)
        return rc;
    FILE *stream = fopen(path, "rbe");
    if (stream == NULL)
        return errno == ENOENT ? sk_fail(d, SK_ERR_NOT_FOUND, "no checkpoint")
                               : sk_fail_errno(d, errno, "cannot open", path);
    struct checkpoint_head head;
    if (!read_stream(stream, &head, sizeof head) || head.magic != CHECKPOINT_MAGIC) {
        rc = sk_fail(d, SK_ERR_INVALID, "the checkpoint has no head");
    } else if (memcmp(head.uuid, field->shard->uuid, SK_UUID_BYTES) != 0 ||
               head.shard != field->shard->number || head.field != field->at) {
        rc = sk_fail(d, SK_ERR_INVALID, "the checkpoint is of another shard or field");
    } else {
        const struct sk_index_image_reader reader = {stream, read_stream};
        rc = sk_index_checkpoint_read(&field->index, params, source, &reader, d);
        *delta_from = head.delta_next;
    }
    fclose(stream);
    return rc;
}

/* ---- checkpoints: writing ---- */

static bool write_stream(void *impl, const void *bytes, size_t size)
{
    return sk_file_write(impl, bytes, size);
}

/* A checkpoint that fills the disk would turn writes away for nothing. */
static enum sk_err has_room(const struct field *field, struct sk_diag *d)
{
    struct statvfs disk;
    struct sk_index_stats stats;
    sk_index_get_stats(field->index, &stats);
    if (statvfs(field->shard->folder, &disk) != 0)
        return SK_ERR_OK; /* the write itself will tell */
    uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (room >= stats.image_bytes + stats.image_bytes / 4)
        return SK_ERR_OK;
    return sk_fail(d, SK_ERR_DISK_FULL, "no room for a checkpoint of %llu bytes",
                   (unsigned long long)stats.image_bytes);
}

enum sk_err checkpoint_begin(struct field *field, struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    enum sk_err rc = has_room(field, d);
    if (rc == SK_ERR_OK)
        rc = take_delta(field, d);
    if (rc == SK_ERR_OK)
        rc = checkpoint_path(field, path, d);
    if (rc == SK_ERR_OK)
        rc = sk_index_checkpoint_begin(field->index, d);
    if (rc == SK_ERR_OK) {
        rc = sk_file_begin(&field->checkpoint, path, d);
        if (rc != SK_ERR_OK)
            sk_index_checkpoint_abort(field->index);
    }
    if (rc != SK_ERR_OK) {
        field->checkpoint_rest_us = now_us(field->shard->worker) + CHECKPOINT_REST_US;
        return rc;
    }
    field->is_unlogged = false; /* what changes from here on is not in the image */
    /* what was taken and waits for its transaction is in the image too */
    uint64_t number = field->delta_next;
    for (size_t at = 0; at < field->unsaved.size; number++) {
        uint32_t size;
        memcpy(&size, field->unsaved.bytes + at, sizeof size);
        at += sizeof size + size;
    }
    field->checkpoint_delta = number;
    field->is_checkpointing = true;
    struct checkpoint_head head = {.magic = CHECKPOINT_MAGIC,
                                   .field = field->at,
                                   .delta_next = number,
                                   .shard = field->shard->number};
    memcpy(head.uuid, field->shard->uuid, sizeof head.uuid);
    sk_file_write(&field->checkpoint, &head, sizeof head);
    return SK_ERR_OK;
}

enum sk_err checkpoint_slice(struct field *field, struct sk_diag *d)
{
    const struct sk_index_writer to = {&field->checkpoint, write_stream};
    bool is_done = false;
    enum sk_err rc = sk_index_checkpoint_step(field->index, CHECKPOINT_SLICE_BYTES, &to, &is_done,
                                              d);
    sk_file_flush(&field->checkpoint); /* so that the sync at the end is short */
    if (rc != SK_ERR_OK) {
        int number = field->checkpoint.error;
        checkpoint_failed(field);
        return number != 0 ? sk_fail_errno(d, number, "cannot write", field->checkpoint.path) : rc;
    }
    if (!is_done)
        return SK_ERR_OK;
    rc = sk_file_commit(&field->checkpoint, d);
    if (rc != SK_ERR_OK) {
        checkpoint_failed(field);
        return rc;
    }
    field->is_checkpointing = false;
    field->is_image_gone = false;
    field->delta_drop = field->checkpoint_delta;
    field->shard->worker->writer.has_checkpoint = true;
    return SK_ERR_OK;
}

bool is_checkpoint_due(const struct field *field, uint64_t now, bool is_stopping)
{
    if (field->state != FIELD_READY || field->is_checkpointing || now < field->checkpoint_rest_us ||
        field->is_altering) /* its image would be of no use */
        return false;
    if (field->is_unlogged)
        return true;
    uint64_t log =
        sk_index_delta_log_bytes(field->index) + sk_index_delta_pending_bytes(field->index);
    if (log == 0)
        return false;
    struct sk_index_stats stats;
    sk_index_get_stats(field->index, &stats);
    if (is_stopping)
        return log > stats.image_bytes / 16;
    bool is_large = log > stats.image_bytes / 2;
    if (now >= field->changed_us + INDEX_IDLE_US)
        return is_large;
    /* while rows come without a pause the log must not grow without bound either */
    return is_large && log > CHECKPOINT_BYTES_MIN &&
           (sk_pending_count(&field->pending) == 0 || log > 2 * stats.image_bytes);
}

