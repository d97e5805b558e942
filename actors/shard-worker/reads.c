#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    READER_ARENA_BYTES_MAX = 256 * 1024 * 1024,
    REPLY_KEPT_BYTES = 32 * 1024,
};

/* ---- the pool ---- */

static void run_read(struct sk_job *job);

/* Of QUICK jobs there is one at a time, so that one reader has them all and remembers places. */
static struct reader *reader_take(struct shard *shard, bool is_quick)
{
    struct reader **at = &shard->idle;
    while (*at != NULL && (*at)->is_quick != is_quick)
        at = &(*at)->next;
    struct reader *reader = *at;
    if (reader != NULL) {
        *at = reader->next;
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
    reader->is_quick = is_quick;
    if (is_quick)
        sk_store_reader_remember(reader->store);
    return reader;
}

void reader_destroy(struct reader *reader)
{
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++)
        sk_index_reader_destroy(&reader->index_readers[f]);
    sk_store_reader_destroy(&reader->store);
    sk_arena_deinit(&reader->arena);
    for (unsigned i = 0; i < READS_TOGETHER_MAX; i++)
        sk_buffer_deinit(&reader->reads[i].reply);
    free(reader);
}

static void reader_add(struct reader *reader, struct request *request)
{
    struct read *read = &reader->reads[reader->read_count++];
    read->request = request;
    read->wants_slow = false;
    read->code = SK_ERR_OK;
    read->diag = (struct sk_diag){0};
}

static void reader_submit(struct reader *reader)
{
    struct shard *shard = reader->shard;
    bool is_quick = reader->is_quick;
    reader->number = shard->read_next++;
    reader->job = (struct sk_job){.run = run_read,
                                  .lane = is_quick ? SK_LANE_QUICK : SK_LANE_SLOW,
                                  .cost_us = is_quick ? (uint32_t)reader->cost_us : 0};
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
static uint64_t cost_of(const struct shard *shard, const struct request *request)
{
    const struct sk_request *decoded = &request->decoded;
    if (request->wants_slow)
        return UINT64_MAX;
    switch (decoded->op) {
    case SK_OP_GET:
        return decoded->ids.count <= 64 ? decoded->ids.count + 1 : UINT64_MAX;
    case SK_OP_SEARCH:
        return search_cost_us(shard, decoded) + 1;
    case SK_OP_COUNT:
        return decoded->filter.bytes == NULL ? 10 : UINT64_MAX;
    default:
        return decoded->limit <= 32 && decoded->filter.bytes == NULL ? 10 + decoded->limit : UINT64_MAX;
    }
}

static bool is_plain_search(const struct request *request)
{
    return request->decoded.op == SK_OP_SEARCH && search_is_plain(&request->decoded);
}

static bool may_start(const struct shard *shard)
{
    return shard->reads.first != NULL && shard->schema_next == NULL && !shard->is_dropped &&
           !shard->is_exclusive;
}

/* Whether a search goes with the one that waits to run. */
static bool joins(const struct shard *shard, const struct request *request, uint64_t cost_us)
{
    const struct reader *reader = shard->quick;
    if (!reader->takes_more || reader->read_count == READS_TOGETHER_MAX || !is_plain_search(request))
        return false;
    const struct sk_request *first = &reader->reads[0].request->decoded;
    return sk_span_equals(first->using, request->decoded.using) &&
           reader->cost_us + cost_us <= shard->worker->config.quick_cost_max_us;
}

enum start { STARTED, WAITS, NO_READER };

/* The first one that waits. */
static enum start start_one(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    uint64_t cost_us = cost_of(shard, shard->reads.first);
    bool is_quick = cost_us <= self->config.quick_cost_max_us;
    if (is_quick && shard->quick != NULL) {
        if (!joins(shard, shard->reads.first, cost_us))
            return WAITS;
        self->reads_waiting--;
        shard->quick->cost_us += cost_us;
        reader_add(shard->quick, queue_pop(&shard->reads));
        return STARTED;
    }
    if (self->reads_in_flight >= self->config.reads_in_flight_max)
        return WAITS;
    struct reader *reader = reader_take(shard, is_quick);
    if (reader == NULL)
        return NO_READER;
    self->reads_waiting--;
    reader->cost_us = cost_us;
    reader->read_count = 0;
    reader_add(reader, queue_pop(&shard->reads));
    reader->takes_more = is_quick && is_plain_search(reader->reads[0].request);
    if (is_quick)
        shard->quick = reader;
    reader_submit(reader);
    return STARTED;
}

void reads_start(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    if (shard->is_starting_reads) /* a job that ran in place ended: the loop below goes on */
        return;
    shard->is_starting_reads = true;
    enum start started = STARTED;
    while (started == STARTED && may_start(shard))
        started = start_one(shard);
    shard->is_starting_reads = false;
    if (started != NO_READER || shard->running_first != NULL)
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

static void answer_read(struct shard *shard, struct read *read)
{
    struct sk_worker *self = shard->worker;
    struct request *request = read->request;
    read->request = NULL;
    if (request->decoded.op == SK_OP_SEARCH)
        self->status.searches++;
    if (sk_request_has(&request->decoded, SK_FIELD_recall))
        indexing_recall_asked(shard);
    if (read->code != SK_ERR_OK)
        answer_error(self, request, read->code, &read->diag);
    else
        answer(self, request, SK_ERR_OK, sk_buffer_span(&read->reply));
    if (read->reply.capacity > REPLY_KEPT_BYTES)
        sk_buffer_deinit(&read->reply);
}

/* What was found to be more work than was thought waits again, in front, for a search thread. */
static void put_back(struct shard *shard, struct read *read)
{
    struct request *request = read->request;
    read->request = NULL;
    if (shard->is_dropped) { /* the queue was refused already */
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_UNAVAILABLE, "the shard has left this worker");
        answer_error(shard->worker, request, rc, &d);
        return;
    }
    request->wants_slow = true;
    queue_push_front(&shard->reads, request);
    shard->worker->reads_waiting++;
}

void reader_drop_index(struct reader *reader, const struct sk_index *index)
{
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++)
        if (reader->index_of[f] == index) {
            sk_index_reader_destroy(&reader->index_readers[f]);
            reader->index_of[f] = NULL;
        }
}

static void drop_buried(struct reader *reader)
{
    for (const struct grave *grave = reader->shard->graves; grave != NULL; grave = grave->next)
        if (grave->index != NULL)
            reader_drop_index(reader, grave->index);
}

void reads_on_done(struct reader *reader)
{
    struct shard *shard = reader->shard;
    struct sk_worker *self = shard->worker;
    unlink_running(shard, reader);
    if (shard->quick == reader)
        shard->quick = NULL;
    for (unsigned i = 0; i < reader->read_count; i++)
        if (!reader->reads[i].wants_slow)
            answer_read(shard, &reader->reads[i]);
    for (unsigned i = reader->read_count; i > 0; i--)
        if (reader->reads[i - 1].wants_slow)
            put_back(shard, &reader->reads[i - 1]);
    reader->read_count = 0;
    sk_arena_reset(&reader->arena);
    drop_buried(reader);
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

/* ---- what reads share ---- */

enum sk_err read_deadline(const struct reader *reader, struct sk_diag *d)
{
    if (now_us(reader->shard->worker) < reader->read->request->deadline_us)
        return SK_ERR_OK;
    return sk_fail(d, SK_ERR_DEADLINE, "the deadline of %u ms passed while reading",
                   reader->read->request->header.deadline_ms);
}

enum sk_err read_filter(struct reader *reader, struct sk_filter **out, struct sk_diag *d)
{
    const struct sk_request *request = &reader->read->request->decoded;
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
    const struct sk_request *request = &reader->read->request->decoded;
    return (uint32_t)request->with_payload.is_wanted + (uint32_t)request->with_vector;
}

void put_record_keys(struct reader *reader, struct sk_buffer *to, uint32_t row,
                     const struct sk_record *record)
{
    const struct sk_request *request = &reader->read->request->decoded;
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
    const struct sk_request *request = &reader->read->request->decoded;
    struct sk_reader members = sk_reader_of(request->ids.members);
    struct sk_reply_writer reply;
    struct sk_id id;
    uint32_t done = 0;
    sk_reply_begin(&reply, &reader->read->reply, &request->id);
    sk_reply_key(&reply, "records");
    sk_put_array(&reader->read->reply, request->ids.count);
    while (sk_ids_next(&members, &id)) {
        uint32_t row;
        struct sk_record record;
        struct sk_diag why = {0};
        enum sk_err rc = sk_store_find(reader->store, &id, &row, &why);
        if (rc == SK_ERR_OK)
            rc = sk_store_record(reader->store, row, &record, &why);
        if (rc == SK_ERR_OK) {
            put_record(reader, &reader->read->reply, row, &record);
        } else if (rc == SK_ERR_NOT_FOUND) {
            sk_put_nil(&reader->read->reply);
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
    sk_reply_begin(&reply, &reader->read->reply, &reader->read->request->decoded.id);
    sk_reply_key(&reply, "count");
    sk_put_u64(&reader->read->reply, selection.count);
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
    const struct sk_request *request = &reader->read->request->decoded;
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
        put_record(reader, &reader->read->reply, row, &record);
        *last = record.id;
        ++*count;
        if (reader->read->reply.size > SK_FRAME_BYTES_MAX / 2) { /* a page of large records ends early */
            *has_more = true;
            return SK_ERR_OK;
        }
    }
    return rc;
}

static enum sk_err scroll_run(struct reader *reader, struct sk_diag *d)
{
    const struct sk_request *request = &reader->read->request->decoded;
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
        sk_reply_begin(&reply, &reader->read->reply, &request->id);
        sk_reply_key(&reply, "records");
        size_t at = sk_put_array_open(&reader->read->reply);
        rc = scroll_rows(reader, &scroll, filter != NULL ? &selection : NULL, &last, &count,
                         &has_more, d);
        sk_store_scroll_end(&scroll);
        sk_put_count_at(&reader->read->reply, at, count);
        sk_reply_key(&reply, "cursor");
        if (has_more)
            sk_put_id(&reader->read->reply, &last);
        else
            sk_put_nil(&reader->read->reply);
        put_warning(&reply, selection.warning);
        sk_reply_end(&reply);
    }
    if (selection.rows != NULL)
        sk_selection_deinit(&selection);
    return rc;
}

/* ---- the job ---- */

static enum sk_err run_one(struct reader *reader, struct sk_diag *d)
{
    enum sk_op op = reader->read->request->decoded.op;
    enum sk_err rc = read_deadline(reader, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_read_begin(reader->store, wall_us(reader->shard->worker), d);
    if (rc != SK_ERR_OK)
        return rc;
    rc = op == SK_OP_GET      ? get_run(reader, d)
         : op == SK_OP_SCROLL ? scroll_run(reader, d)
                              : count_run(reader, d);
    sk_store_read_end(reader->store);
    return rc == SK_ERR_OK ? sk_buffer_check(&reader->read->reply, d) : rc;
}

static void check_size(struct read *read)
{
    if (read->code == SK_ERR_OK && read->reply.size > SK_FRAME_BYTES_MAX)
        read->code = sk_fail(&read->diag, SK_ERR_TOO_LARGE,
                             "the answer has %zu bytes, the most is %d: ask for fewer records",
                             read->reply.size, SK_FRAME_BYTES_MAX);
}

static void run_read(struct sk_job *job)
{
    struct reader *reader = (struct reader *)job;
    reader->takes_more = false;
    sk_arena_reset(&reader->arena);
    for (unsigned i = 0; i < reader->read_count; i++)
        sk_buffer_clear(&reader->reads[i].reply);
    reader->read = &reader->reads[0];
    if (reader->read->request->decoded.op == SK_OP_SEARCH)
        search_run(reader);
    else
        reader->read->code = run_one(reader, &reader->read->diag);
    for (unsigned i = 0; i < reader->read_count; i++)
        check_size(&reader->reads[i]);
}
