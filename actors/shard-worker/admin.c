/* verify, compact, snapshot, restore: on the writer lane, one at a time a shard; and the look into a
 * snapshot that comes before its collection is made. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool admin_is_exclusive(const struct request *request)
{
    return request->decoded.op == SK_OP_COMPACT || request->decoded.op == SK_OP_RESTORE;
}

static enum sk_err snapshot_path(const struct sk_worker *self, const struct request *request,
                                 unsigned shard, const char *suffix, char path[SK_PATH_BYTES],
                                 struct sk_diag *d)
{
    struct sk_span name = request->decoded.name;
    return sk_path(path, d, "%s/%.*s/shard-%u%s", self->snapshot_dir, (int)name.size,
                   (const char *)name.bytes, shard, suffix);
}

static enum sk_err snapshot_is_there(const struct request *request, const char *path,
                                     struct sk_diag *d)
{
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        return SK_ERR_OK;
    return sk_fail_field(d, SK_ERR_NOT_FOUND, "name", "no snapshot '%.*s' with this shard",
                         (int)request->decoded.name.size, (const char *)request->decoded.name.bytes);
}

/* ---- on the writer lane ---- */

/* Tables and indexes against each other; an index that is wrong is built again. */
static enum sk_err verify(struct writer *writer, struct sk_reply_writer *reply, struct sk_diag *d)
{
    struct shard *shard = writer->shard;
    struct sk_store_check check = {0};
    uint64_t rows = 0;
    enum sk_err rc = sk_store_verify(shard->store, wall_us(writer->worker), &check, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_read_begin(shard->writer_reader, 0, d);
    if (rc != SK_ERR_OK)
        return rc;
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct sk_diag why = {0};
        if (field_check(&shard->fields[f], &rows, &why) == SK_ERR_OK)
            continue;
        field_rebuild(writer, &shard->fields[f], why.text);
        check.mended++;
    }
    sk_store_read_end(shard->writer_reader);
    sk_reply_key(reply, "checked");
    sk_put_u64(reply->to, check.checked + rows);
    sk_reply_key(reply, "mended");
    sk_put_u64(reply->to, check.mended);
    return SK_ERR_OK;
}

/* Readers hold handles of the file that goes: none is left while it is replaced (the core has destroyed
 * its own). */
static enum sk_err compact(struct shard *shard, struct sk_reply_writer *reply, struct sk_diag *d)
{
    uint64_t before = 0, after = 0;
    sk_store_reader_destroy(&shard->writer_reader);
    enum sk_err rc = sk_store_compact(shard->store, &before, &after, d);
    if (rc == SK_ERR_DISK_FULL && saving_give_way(shard))
        rc = sk_store_compact(shard->store, &before, &after, d);
    struct sk_diag why = {0};
    enum sk_err reader = sk_store_reader_new(&shard->writer_reader, shard->store, &why);
    SK_CHECK(reader == SK_ERR_OK); /* a few bytes; without them the shard cannot go on */
    if (rc != SK_ERR_OK)
        return rc;
    shard->looked_us = 0;
    shard_look(shard);
    sk_reply_key(reply, "bytes_before");
    sk_put_u64(reply->to, before);
    sk_reply_key(reply, "bytes_after");
    sk_put_u64(reply->to, after);
    return SK_ERR_OK;
}

static enum sk_err snapshot(struct writer *writer, const struct request *request,
                            struct sk_reply_writer *reply, struct sk_diag *d)
{
    struct shard *shard = writer->shard;
    struct sk_worker *self = writer->worker;
    char folder[SK_PATH_BYTES], path[SK_PATH_BYTES], temporary[SK_PATH_BYTES];
    struct sk_span name = request->decoded.name;
    uint64_t bytes = 0;
    enum sk_err rc = sk_path(folder, d, "%s/%.*s", self->snapshot_dir, (int)name.size,
                             (const char *)name.bytes);
    if (rc == SK_ERR_OK)
        rc = snapshot_path(self, request, shard->number, "", path, d);
    if (rc == SK_ERR_OK)
        rc = snapshot_path(self, request, shard->number, ".part", temporary, d);
    if (rc == SK_ERR_OK && access(path, F_OK) == 0)
        rc = sk_fail_field(d, SK_ERR_EXISTS, "name", "there is a snapshot '%.*s' already",
                           (int)name.size, (const char *)name.bytes);
    if (rc == SK_ERR_OK)
        rc = sk_folder_make(self->snapshot_dir, d);
    if (rc == SK_ERR_OK)
        rc = sk_folder_make(folder, d);
    if (rc == SK_ERR_OK)
        rc = sk_folder_remove(temporary, d); /* of one that was cut short */
    if (rc == SK_ERR_OK)
        rc = sk_folder_make(temporary, d);
    if (rc != SK_ERR_OK)
        return rc;
    rc = sk_store_snapshot(shard->store, temporary, &bytes, d);
    if (rc == SK_ERR_OK && rename(temporary, path) != 0)
        rc = sk_fail(d, SK_ERR_UNAVAILABLE, "cannot rename %s", temporary);
    if (rc == SK_ERR_OK)
        rc = sk_folder_sync(folder, d);
    if (rc != SK_ERR_OK) {
        struct sk_diag ignored = {0};
        enum sk_err removed = sk_folder_remove(temporary, &ignored);
        (void)removed;
        return rc;
    }
    sk_reply_key(reply, "bytes");
    sk_put_u64(reply->to, bytes);
    return SK_ERR_OK;
}

static enum sk_err restore(struct writer *writer, const struct request *request,
                           struct sk_reply_writer *reply, struct sk_diag *d)
{
    struct shard *shard = writer->shard;
    char path[SK_PATH_BYTES];
    uint64_t records = 0;
    if (atomic_load_explicit(&shard->records, memory_order_relaxed) != 0)
        return sk_fail(d, SK_ERR_EXISTS, "the shard has records; a restore wants a new collection");
    enum sk_err rc = snapshot_path(writer->worker, request, shard->number, "", path, d);
    if (rc == SK_ERR_OK)
        rc = snapshot_is_there(request, path, d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_store_reader_destroy(&shard->writer_reader);
    rc = sk_store_restore(shard->store, path, &records, d);
    struct sk_diag why = {0};
    enum sk_err reader = sk_store_reader_new(&shard->writer_reader, shard->store, &why);
    SK_CHECK(reader == SK_ERR_OK);
    if (rc != SK_ERR_OK)
        return rc;
    sk_reply_key(reply, "records");
    sk_put_u64(reply->to, records);
    return SK_ERR_OK;
}

void turn_admin(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    struct request *request = writer->batch.first;
    struct sk_reply_writer reply;
    enum sk_err rc = SK_ERR_INTERNAL;
    sk_buffer_clear(&writer->reply);
    sk_reply_begin(&reply, &writer->reply, &request->decoded.id);
    switch (request->decoded.op) {
    case SK_OP_VERIFY:
        rc = verify(writer, &reply, &request->diag);
        break;
    case SK_OP_COMPACT:
        rc = compact(writer->shard, &reply, &request->diag);
        break;
    case SK_OP_SNAPSHOT:
        rc = snapshot(writer, request, &reply, &request->diag);
        break;
    default:
        rc = restore(writer, request, &reply, &request->diag);
        break;
    }
    sk_reply_end(&reply);
    if (rc == SK_ERR_OK)
        rc = sk_buffer_check(&writer->reply, &request->diag);
    request->code = rc;
}

void admin_on_done(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    struct request *request = queue_pop(&self->writer.batch);
    if (request->code == SK_ERR_OK && request->decoded.op == SK_OP_RESTORE) {
        request->code = shard_reset(shard, &request->diag);
        shard->sweep_us = shard_next_sweep(shard, now_us(self));
    }
    shard->is_exclusive = false;
    if (request->code != SK_ERR_OK) {
        struct sk_diag d = request->diag;
        answer_error(self, request, request->code, &d);
    } else {
        answer(self, request, SK_ERR_OK, sk_buffer_span(&self->writer.reply));
    }
}

/* ---- before there is a collection ---- */

static enum sk_err describe(struct describe *self, struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    struct sk_reply_writer reply;
    struct sk_schema *schema = malloc(sizeof *schema);
    if (schema == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a schema");
    enum sk_err rc = snapshot_path(self->worker, self->request, 0, "", path, d);
    if (rc == SK_ERR_OK)
        rc = snapshot_is_there(self->request, path, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_snapshot_schema(path, schema, d);
    if (rc == SK_ERR_OK) {
        sk_buffer_clear(&self->reply);
        sk_reply_begin(&reply, &self->reply, &self->request->decoded.id);
        sk_reply_key(&reply, "schema");
        sk_schema_encode(&self->reply, schema);
        sk_reply_key(&reply, "shards");
        sk_put_u64(&self->reply, schema->shard_count);
        sk_reply_end(&reply);
        rc = sk_buffer_check(&self->reply, d);
    }
    free(schema);
    return rc;
}

static void run_describe(struct sk_job *job)
{
    struct describe *self = (struct describe *)job;
    self->code = describe(self, &self->diag);
}

void describe_start(struct sk_worker *self, struct request *request)
{
    struct describe *describe_job = &self->describe;
    if (describe_job->request != NULL) {
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_BUSY, "another snapshot is being read");
        answer_error(self, request, rc, &d);
        return;
    }
    describe_job->request = request;
    describe_job->diag = (struct sk_diag){0};
    describe_job->job = (struct sk_job){.run = run_describe, .lane = SK_LANE_SLOW};
    self->io->submit(self->io->impl, &describe_job->job);
}

void describe_on_done(struct sk_worker *self)
{
    struct request *request = self->describe.request;
    self->describe.request = NULL;
    if (self->describe.code == SK_ERR_OK)
        answer(self, request, SK_ERR_OK, sk_buffer_span(&self->describe.reply));
    else
        answer_error(self, request, self->describe.code, &self->describe.diag);
}
