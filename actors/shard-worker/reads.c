#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

enum { READER_ARENA_BYTES_MAX = 256 * 1024 * 1024, REPLY_KEPT_BYTES = 256 * 1024 };

/* ---- the pool ---- */

static void run_read(struct sk_job *job);

static struct reader *reader_take(struct shard *shard)
{
    struct reader *reader = shard->idle;
    if (reader != NULL) {
        shard->idle = reader->next;
        reader->next = NULL;
        return reader;
    }
    reader = calloc(1, sizeof *reader);
    if (reader == NULL)
        return NULL;
    reader->shard = shard;
    sk_arena_init(&reader->arena, READER_ARENA_BYTES_MAX);
    struct sk_diag d = {0};
    if (sk_store_reader_new(&reader->store, shard->store, &d) != SK_ERR_OK) {
        reader_destroy(reader);
        return NULL;
    }
    return reader;
}

void reader_destroy(struct reader *reader)
{
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++)
        sk_index_reader_destroy(&reader->index_readers[f]);
    sk_store_reader_destroy(&reader->store);
    sk_arena_deinit(&reader->arena);
    sk_buffer_deinit(&reader->reply);
    free(reader);
}

static void reader_submit(struct reader *reader, enum sk_lane lane)
{
    struct shard *shard = reader->shard;
    reader->number = shard->read_next++;
    reader->wants_slow = false;
    reader->code = SK_ERR_OK;
    reader->diag = (struct sk_diag){0};
    reader->job = (struct sk_job){.run = run_read, .lane = lane};
    reader->next = NULL;
    if (shard->running_last == NULL)
        shard->running_first = reader;
    else
        shard->running_last->next = reader;
    shard->running_last = reader;
    shard->worker->reads_in_flight++;
    shard->worker->io->submit(shard->worker->io->impl, &reader->job);
}

/* A first guess, corrected by the job itself: what surely takes long goes to the slow lane at once. */
static enum sk_lane lane_of(const struct shard *shard, const struct sk_request *request)
{
    switch (request->op) {
    case SK_OP_GET:
        return request->ids.count <= 64 ? SK_LANE_QUICK : SK_LANE_SLOW;
    case SK_OP_SEARCH:
        return search_lane(shard, request);
    case SK_OP_COUNT:
        return request->filter.bytes == NULL ? SK_LANE_QUICK : SK_LANE_SLOW;
    default:
        return request->limit <= 32 && request->filter.bytes == NULL ? SK_LANE_QUICK
                                                                     : SK_LANE_SLOW;
    }
}

static bool may_start(const struct shard *shard)
{
    return shard->reads.first != NULL && shard->schema_next == NULL && !shard->is_dropped &&
           !shard->is_exclusive;
}

void reads_start(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    if (shard->is_starting_reads) /* a job that ran in place ended: the loop below goes on */
        return;
    shard->is_starting_reads = true;
    while (may_start(shard) &&
           self->reads_in_flight < self->config.reads_in_flight_max) {
        struct reader *reader = reader_take(shard);
        if (reader == NULL)
            break;
        reader->request = queue_pop(&shard->reads);
        self->reads_waiting--;
        reader_submit(reader, lane_of(shard, &reader->request->decoded));
    }
    shard->is_starting_reads = false;
    if (!may_start(shard) || shard->running_first != NULL ||
        self->reads_in_flight >= self->config.reads_in_flight_max)
        return;
    /* not even one reader could be made */
    struct sk_diag d = {0};
    enum sk_err rc = sk_fail(&d, SK_ERR_NOMEM, "no memory for a reader of the shard");
    self->reads_waiting--;
    answer_error(self, queue_pop(&shard->reads), rc, &d);
}

void reads_enqueue(struct shard *shard, struct request *request)
{
    struct sk_worker *self = shard->worker;
    if (self->reads_waiting >= self->config.reads_queued_max) {
        struct sk_diag d = {0};
        enum sk_err rc =
            sk_fail(&d, SK_ERR_BUSY, "%u reads wait already", self->config.reads_queued_max);
        answer_error(self, request, rc, &d);
        return;
    }
    queue_push(&shard->reads, request);
    self->reads_waiting++;
    reads_start(shard);
}

uint64_t reads_ended_below(const struct shard *shard)
{
    return shard->running_first != NULL ? shard->running_first->number : shard->read_next;
}

/* Takes the reader out of the list of running ones. */
static void unlink_running(struct shard *shard, struct reader *reader)
{
    struct reader **at = &shard->running_first;
    struct reader *before = NULL;
    while (*at != reader) {
        before = *at;
        at = &(*at)->next;
    }
    *at = reader->next;
    if (shard->running_last == reader)
        shard->running_last = before;
    reader->next = NULL;
    shard->worker->reads_in_flight--;
}

void reads_on_done(struct reader *reader)
{
    struct shard *shard = reader->shard;
    struct sk_worker *self = shard->worker;
    unlink_running(shard, reader);
    if (reader->wants_slow) {
        reader_submit(reader, SK_LANE_SLOW);
        return;
    }
    struct request *request = reader->request;
    reader->request = NULL;
    if (request->decoded.op == SK_OP_SEARCH)
        self->status.searches++;
    if (sk_request_has(&request->decoded, SK_FIELD_recall))
        indexing_recall_asked(shard);
    if (reader->code != SK_ERR_OK)
        answer_error(self, request, reader->code, &reader->diag);
    else
        answer(self, request, SK_ERR_OK, sk_buffer_span(&reader->reply));
    if (reader->reply.capacity > REPLY_KEPT_BYTES)
        sk_buffer_deinit(&reader->reply);
    sk_arena_reset(&reader->arena);
    reader->next = shard->idle;
    shard->idle = reader;
    graves_dig(shard, false);
    /* the lane may have waited for this read to end (a job that runs looks again at its end) */
    if (!self->writer.is_submitted && (shard->dying.count != 0 || shard->is_exclusive))
        self->turn_us = 0;
    shard_settle(shard);
    for (struct shard *other = self->shards; other != NULL && self->reads_waiting != 0;
         other = other->next)
        reads_start(other); /* they may have waited for the place that is free now */
}

void readers_destroy_idle(struct shard *shard)
{
    while (shard->idle != NULL) {
        struct reader *reader = shard->idle;
        shard->idle = reader->next;
        reader_destroy(reader);
    }
}

/* ---- graves ---- */

static void grave_put(struct shard *shard, struct sk_pending_chunk *chunk, struct sk_index *index)
{
    struct grave *grave = calloc(1, sizeof *grave);
    SK_CHECK(grave != NULL); /* a few bytes; without them nothing can be freed safely */
    *grave = (struct grave){
        .next = shard->graves, .after = shard->read_next, .chunk = chunk, .index = index};
    shard->graves = grave;
}

void grave_put_chunks(struct shard *shard, struct sk_pending_chunk *chunk)
{
    while (chunk != NULL) {
        struct sk_pending_chunk *next = chunk->retired_next;
        if (shard->running_first == NULL)
            sk_pending_chunk_free(chunk);
        else
            grave_put(shard, chunk, NULL);
        chunk = next;
    }
}

void grave_put_index(struct shard *shard, struct sk_index *index)
{
    grave_put(shard, NULL, index);
}

static void index_bury(struct shard *shard, struct sk_index *index)
{
    for (struct reader *reader = shard->idle; reader != NULL; reader = reader->next)
        for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++)
            if (reader->index_of[f] == index) {
                sk_index_reader_destroy(&reader->index_readers[f]);
                reader->index_of[f] = NULL;
            }
    sk_index_destroy(&index);
}

void graves_dig(struct shard *shard, bool is_all)
{
    uint64_t ended = reads_ended_below(shard);
    struct grave **at = &shard->graves;
    while (*at != NULL) {
        struct grave *grave = *at;
        /* an index may still be named by readers that run: those numbered later do not search it, but
         * hold a reader of it, so it waits for a moment with none running */
        if (!is_all && (grave->after > ended ||
                        (grave->index != NULL && shard->running_first != NULL))) {
            at = &grave->next;
            continue;
        }
        *at = grave->next;
        sk_pending_chunk_free(grave->chunk);
        if (grave->index != NULL)
            index_bury(shard, grave->index);
        free(grave);
    }
}

/* ---- what reads share ---- */

enum sk_err read_deadline(const struct reader *reader, struct sk_diag *d)
{
    if (now_us(reader->shard->worker) < reader->request->deadline_us)
        return SK_ERR_OK;
    return sk_fail(d, SK_ERR_DEADLINE, "the deadline of %u ms passed while reading",
                   reader->request->header.deadline_ms);
}

enum sk_err read_filter(struct reader *reader, struct sk_filter **out, struct sk_diag *d)
{
    const struct sk_request *request = &reader->request->decoded;
    *out = NULL;
    if (!sk_request_has(request, SK_FIELD_filter))
        return SK_ERR_OK;
    enum sk_err rc = sk_filter_parse(out, &reader->arena, request->filter, d);
    if (rc == SK_ERR_OK)
        rc = sk_filter_check(reader->shard->schema, *out, d);
    return rc;
}

uint32_t record_key_count(const struct reader *reader)
{
    const struct sk_request *request = &reader->request->decoded;
    return (uint32_t)request->with_payload.is_wanted + (uint32_t)request->with_vector;
}

void put_record_keys(struct reader *reader, struct sk_buffer *to, uint32_t row,
                     const struct sk_record *record)
{
    const struct sk_request *request = &reader->request->decoded;
    const struct shard *shard = reader->shard;
    if (request->with_payload.is_wanted) {
        sk_put_text(to, "payload");
        if (record->payload.size == 0)
            sk_put_map(to, 0);
        else if (request->with_payload.names.is_present)
            sk_payload_select(to, record->payload, &request->with_payload.names);
        else
            sk_put_raw(to, record->payload);
    }
    if (!request->with_vector)
        return;
    sk_put_text(to, "vector");
    bool is_named = shard->field_count != 1 || shard->fields[0].schema.name[0] != '\0';
    if (is_named)
        sk_put_map(to, shard->field_count);
    for (unsigned f = 0; f < shard->field_count; f++) {
        const float *vector = sk_store_vector(reader->store, f, row);
        if (is_named)
            sk_put_text(to, shard->fields[f].schema.name);
        if (vector == NULL)
            sk_put_nil(to);
        else
            sk_put_bin(to, vector, shard->fields[f].schema.dim * sizeof *vector);
    }
}

static void put_record(struct reader *reader, struct sk_buffer *to, uint32_t row,
                       const struct sk_record *record)
{
    sk_put_map(to, 2 + record_key_count(reader));
    sk_put_text(to, "id");
    sk_put_id(to, &record->id);
    put_record_keys(reader, to, row, record);
    sk_put_text(to, "version");
    sk_put_map(to, 3);
    sk_put_text(to, "hlc");
    sk_put_u64(to, record->hlc);
    sk_put_text(to, "actor");
    sk_put_u64(to, record->actor);
    sk_put_text(to, "seq");
    sk_put_u64(to, record->seq);
}

/* ---- get, scroll, count ---- */

static enum sk_err get_run(struct reader *reader, struct sk_diag *d)
{
    const struct sk_request *request = &reader->request->decoded;
    struct sk_reader members = sk_reader_of(request->ids.members);
    struct sk_reply_writer reply;
    struct sk_id id;
    uint32_t done = 0;
    sk_reply_begin(&reply, &reader->reply, &request->id);
    sk_reply_key(&reply, "records");
    sk_put_array(&reader->reply, request->ids.count);
    while (sk_ids_next(&members, &id)) {
        uint32_t row;
        struct sk_record record;
        struct sk_diag why = {0};
        enum sk_err rc = sk_store_find(reader->store, &id, &row, &why);
        if (rc == SK_ERR_OK)
            rc = sk_store_record(reader->store, row, &record, &why);
        if (rc == SK_ERR_OK) {
            put_record(reader, &reader->reply, row, &record);
        } else if (rc == SK_ERR_NOT_FOUND) {
            sk_put_nil(&reader->reply);
        } else {
            *d = why;
            return rc;
        }
        if (++done % DEADLINE_EVERY == 0 && (rc = read_deadline(reader, d)) != SK_ERR_OK)
            return rc;
    }
    sk_reply_end(&reply);
    return SK_ERR_OK;
}

static void put_warning(struct sk_reply_writer *reply, const char *warning)
{
    if (warning[0] == '\0')
        return;
    sk_reply_key(reply, "warning");
    sk_put_text(reply->to, warning);
}

static enum sk_err count_run(struct reader *reader, struct sk_diag *d)
{
    struct sk_filter *filter;
    struct sk_selection selection = {0};
    enum sk_err rc = read_filter(reader, &filter, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_select(reader->store, filter, &selection, d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, &reader->reply, &reader->request->decoded.id);
    sk_reply_key(&reply, "count");
    sk_put_u64(&reader->reply, selection.count);
    put_warning(&reply, selection.warning);
    sk_reply_end(&reply);
    sk_selection_deinit(&selection);
    return SK_ERR_OK;
}

/* The cursor is the id where the last page ended: an unsigned integer or a text, packed. */
static enum sk_err read_cursor(const struct sk_request *request, struct sk_id *id, bool *has_after,
                               struct sk_diag *d)
{
    *has_after = sk_request_has(request, SK_FIELD_cursor);
    if (!*has_after)
        return SK_ERR_OK;
    struct sk_reader from = sk_reader_of(request->cursor);
    enum sk_err rc = sk_read_id(&from, id, d);
    return rc == SK_ERR_OK ? SK_ERR_OK
                           : sk_fail_field(d, SK_ERR_INVALID, "cursor",
                                           "not a cursor that a scroll has given");
}

static enum sk_err scroll_rows(struct reader *reader, struct sk_store_scroll *scroll,
                               const struct sk_selection *selection, struct sk_id *last,
                               uint32_t *count, bool *has_more, struct sk_diag *d)
{
    const struct sk_request *request = &reader->request->decoded;
    uint32_t row;
    uint64_t looked = 0;
    struct sk_record record;
    enum sk_err rc = SK_ERR_OK;
    *count = 0;
    *has_more = false;
    while (sk_store_scroll_next(scroll, &row, &record, &rc, d)) {
        if (++looked % DEADLINE_EVERY == 0 && (rc = read_deadline(reader, d)) != SK_ERR_OK)
            return rc;
        if (selection != NULL && !sk_selection_has(selection, row))
            continue;
        if (*count == request->limit) {
            *has_more = true;
            return SK_ERR_OK;
        }
        put_record(reader, &reader->reply, row, &record);
        *last = record.id;
        ++*count;
        if (reader->reply.size > SK_FRAME_BYTES_MAX / 2) { /* a page of large records ends early */
            *has_more = true;
            return SK_ERR_OK;
        }
    }
    return rc;
}

static enum sk_err scroll_run(struct reader *reader, struct sk_diag *d)
{
    const struct sk_request *request = &reader->request->decoded;
    struct sk_filter *filter;
    struct sk_selection selection = {0};
    struct sk_store_scroll scroll;
    struct sk_id last = {0};
    bool has_after;
    enum sk_err rc = read_cursor(request, &last, &has_after, d);
    if (rc == SK_ERR_OK)
        rc = read_filter(reader, &filter, d);
    if (rc == SK_ERR_OK && filter != NULL)
        rc = sk_store_select(reader->store, filter, &selection, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_scroll_begin(&scroll, reader->store, has_after ? &last : NULL, d);
    if (rc == SK_ERR_OK) {
        struct sk_reply_writer reply;
        uint32_t count = 0;
        bool has_more = false;
        sk_reply_begin(&reply, &reader->reply, &request->id);
        sk_reply_key(&reply, "records");
        size_t at = sk_put_array_open(&reader->reply);
        rc = scroll_rows(reader, &scroll, filter != NULL ? &selection : NULL, &last, &count,
                         &has_more, d);
        sk_store_scroll_end(&scroll);
        sk_put_count_at(&reader->reply, at, count);
        sk_reply_key(&reply, "cursor");
        if (has_more)
            sk_put_id(&reader->reply, &last);
        else
            sk_put_nil(&reader->reply);
        put_warning(&reply, selection.warning);
        sk_reply_end(&reply);
    }
    if (selection.rows != NULL)
        sk_selection_deinit(&selection);
    return rc;
}

/* ---- the job ---- */

static void run_read(struct sk_job *job)
{
    struct reader *reader = (struct reader *)job;
    struct sk_diag *d = &reader->diag;
    sk_buffer_clear(&reader->reply);
    sk_arena_reset(&reader->arena);
    enum sk_op op = reader->request->decoded.op;
    enum sk_err rc = read_deadline(reader, d);
    if (rc == SK_ERR_OK && op == SK_OP_SEARCH) {
        rc = search_run(reader, d);
    } else if (rc == SK_ERR_OK) {
        rc = sk_store_read_begin(reader->store, wall_us(reader->shard->worker), d);
        if (rc == SK_ERR_OK) {
            rc = op == SK_OP_GET      ? get_run(reader, d)
                 : op == SK_OP_SCROLL ? scroll_run(reader, d)
                                      : count_run(reader, d);
            sk_store_read_end(reader->store);
        }
    }
    if (rc == SK_ERR_OK && !reader->wants_slow)
        rc = sk_buffer_check(&reader->reply, d);
    if (rc == SK_ERR_OK && reader->reply.size > SK_FRAME_BYTES_MAX)
        rc = sk_fail(d, SK_ERR_TOO_LARGE,
                     "the answer has %zu bytes, the most is %d: ask for fewer records",
                     reader->reply.size, SK_FRAME_BYTES_MAX);
    reader->code = rc;
}
