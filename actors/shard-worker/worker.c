#include "actors/shard-worker/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct sk_note_kind sk_worker_notes[SK_WORKER_NOTE_COUNT] = {SK_WORKER_NOTES(SK_NOTE_KIND)};

/* ---- small tools ---- */

uint64_t now_us(const struct sk_worker *self)
{
    return self->io->mono_us(self->io->impl);
}

uint64_t wall_us(const struct sk_worker *self)
{
    return self->io->wall_us(self->io->impl);
}

uint64_t sooner(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void note(struct sk_worker *self, enum sk_worker_note kind, uint64_t a, uint64_t b)
{
    if (self->io->note != NULL)
        self->io->note(self->io->impl, kind, a, b);
}

void queue_push(struct queue *self, struct request *request)
{
    request->next = NULL;
    if (self->last == NULL)
        self->first = request;
    else
        self->last->next = request;
    self->last = request;
    self->count++;
}

void queue_push_front(struct queue *self, struct request *request)
{
    request->next = self->first;
    self->first = request;
    if (self->last == NULL)
        self->last = request;
    self->count++;
}

struct request *queue_pop(struct queue *self)
{
    struct request *request = self->first;
    if (request == NULL)
        return NULL;
    self->first = request->next;
    if (self->first == NULL)
        self->last = NULL;
    self->count--;
    request->next = NULL;
    return request;
}

void queue_free(struct queue *self)
{
    for (struct request *request = queue_pop(self); request != NULL; request = queue_pop(self))
        free(request);
}

void queue_refuse(struct sk_worker *self, struct queue *queue, enum sk_err code,
                  const struct sk_diag *d)
{
    for (struct request *request = queue_pop(queue); request != NULL; request = queue_pop(queue))
        answer_error(self, request, code, d);
}

/* ---- messages out ---- */

void send_to(struct sk_worker *self, sk_peer peer, const struct sk_link_header *header,
                    struct sk_span body)
{
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, header);
    const struct sk_span parts[2] = {sk_span_of(bytes, sizeof bytes), body};
    self->io->send(self->io->impl, peer, parts, body.size != 0 ? 2 : 1);
}

void answer_early(struct sk_worker *self, const struct request *request, enum sk_err code,
                  struct sk_span body)
{
    const struct sk_link_header *asked = &request->header;
    struct sk_link_header header = {
        .kind = SK_LINK_REPLY,
        .status = code,
        .shard = asked->shard,
        .worker = (uint16_t)self->config.number,
        .request = asked->request,
        .incarnation = asked->incarnation,
        .sequence = asked->sequence,
        .map_version = self->map.version,
        .is_part = asked->is_part,
    };
    memcpy(header.collection, asked->collection, sizeof header.collection);
    send_to(self, SK_PEER_ROUTER, &header, body);
    self->status.requests++;
    if (code != SK_ERR_OK)
        self->status.errors++;
}

void request_free(struct sk_worker *self, struct request *request)
{
    SK_CHECK(self->queued_bytes >= request->size);
    self->queued_bytes -= request->size;
    free(request);
}

void answer(struct sk_worker *self, struct request *request, enum sk_err code, struct sk_span body)
{
    answer_early(self, request, code, body);
    request_free(self, request);
}

void answer_error(struct sk_worker *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d)
{
    const struct sk_link_header *asked = &request->header;
    if (asked->incarnation != 0)
        self->refusals[asked->sequence % REFUSALS_MAX] =
            (struct refusal){asked->incarnation, asked->sequence, code};
    sk_buffer_clear(&self->reply);
    sk_reply_error(&self->reply, &request->decoded.id, code, d);
    if (self->reply.is_broken) /* no memory even for that: the router's deadline answers */
        request_free(self, request);
    else
        answer(self, request, code, sk_buffer_span(&self->reply));
}

static void ask_map(struct sk_worker *self, uint64_t now)
{
    struct sk_request request = {.op = SK_OP_MAP_GET, .deadline_ms = 5000};
    request.id = (struct sk_request_id){.is_present = true, .number = 1};
    request.map_version = self->map.version;
    request.present = (uint64_t)1 << SK_FIELD_map_version;
    sk_buffer_clear(&self->reply);
    sk_request_encode(&self->reply, &request);
    if (self->reply.is_broken)
        return;
    const struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                          .role = SK_ROLE_LINK,
                                          .worker = (uint16_t)self->config.number,
                                          .request = 1,
                                          .deadline_ms = 5000};
    send_to(self, SK_PEER_KEEPER, &header, sk_buffer_span(&self->reply));
    self->is_map_wanted = false;
    self->is_map_asked = true;
    self->map_next_us = now + MAP_RETRY_US;
}

static void say_hello(struct sk_worker *self)
{
    if (!self->is_ready)
        return;
    const struct sk_link_header header = {.kind = SK_LINK_HELLO,
                                          .worker = (uint16_t)self->config.number,
                                          .incarnation = self->incarnation,
                                          .map_version = self->map.version};
    sk_buffer_clear(&self->reply);
    sk_put_map(&self->reply, 3);
    sk_put_text(&self->reply, "number");
    sk_put_u64(&self->reply, self->config.number);
    sk_put_text(&self->reply, "pid");
    sk_put_u64(&self->reply, self->config.process_id);
    sk_put_text(&self->reply, "incarnation");
    sk_put_u64(&self->reply, self->incarnation);
    if (self->reply.is_broken)
        return;
    send_to(self, SK_PEER_ROUTER, &header, sk_buffer_span(&self->reply));
    self->stats_next_us = 0;
}

/* ---- life ---- */

static uint32_t setting(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static enum sk_err configure(struct sk_worker *self, const struct sk_worker_config *config,
                             struct sk_diag *d)
{
    struct sk_worker_config *c = &self->config;
    *c = *config;
    c->reads_in_flight_max = setting(c->reads_in_flight_max, 32);
    c->reads_queued_max = setting(c->reads_queued_max, 1024);
    c->writes_queued_max = setting(c->writes_queued_max, 4096);
    c->batch_rows_max = setting(c->batch_rows_max, 4096);
    c->pending_rows_max = setting(c->pending_rows_max, 1024);
    c->index_slice_us = setting(c->index_slice_us, 4000);
    c->quick_cost_max_us = setting(c->quick_cost_max_us, 1500);
    if (c->queued_bytes_max == 0)
        c->queued_bytes_max = (uint64_t)256 * 1024 * 1024;
    if (c->reads_in_flight_max > SK_INDEX_READERS_MAX)
        return sk_fail(d, SK_ERR_INVALID, "reads_in_flight_max: %u, want 1..%d",
                       c->reads_in_flight_max, SK_INDEX_READERS_MAX);
    if (config->data_dir == NULL || config->snapshot_dir == NULL)
        return sk_fail(d, SK_ERR_INVALID, "data_dir and snapshot_dir are wanted");
    enum sk_err rc = sk_path(self->data_dir, d, "%s", config->data_dir);
    if (rc == SK_ERR_OK)
        rc = sk_path(self->snapshot_dir, d, "%s", config->snapshot_dir);
    c->data_dir = self->data_dir;
    c->snapshot_dir = self->snapshot_dir;
    if (config->kernels != NULL) {
        snprintf(self->kernels_name, sizeof self->kernels_name, "%s", config->kernels);
        c->kernels = self->kernels_name;
    }
    if (rc == SK_ERR_OK && access(self->data_dir, R_OK | W_OK | X_OK) != 0)
        rc = sk_fail_errno(d, errno, "cannot use the data folder", self->data_dir);
    return rc;
}

enum sk_err sk_worker_new(struct sk_worker **out, const struct sk_worker_config *config,
                          const struct sk_io *io, struct sk_diag *d)
{
    *out = NULL;
    struct sk_worker *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the worker");
    self->io = io;
    enum sk_err rc = configure(self, config, d);
    if (rc != SK_ERR_OK)
        goto out;
    rc = SK_ERR_NOMEM;
    self->scratch = malloc(SK_DIM_MAX * sizeof *self->scratch);
    if (self->scratch == NULL) {
        rc = sk_fail(d, SK_ERR_NOMEM, "no memory for the worker");
        goto out;
    }
    self->kernels = sk_kernels_get(self->config.kernels);
    if (self->kernels == NULL) {
        rc = sk_fail_field(d, SK_ERR_INVALID, "kernels", "'%s' is not to be had on this machine",
                           self->kernels_name);
        goto out;
    }
    self->incarnation = io->random(io->impl) | 1;
    self->writer.worker = self;
    self->describe.worker = self;
    self->is_map_wanted = true;
    self->expire_us = UINT64_MAX;
    *out = self;
    return SK_ERR_OK;
out:
    sk_worker_destroy(&self);
    return rc;
}

void sk_worker_destroy(struct sk_worker **self_at)
{
    struct sk_worker *self = *self_at;
    if (self == NULL)
        return;
    *self_at = NULL;
    queue_free(&self->writer.batch);
    while (self->shards != NULL) {
        struct shard *shard = self->shards;
        self->shards = shard->next;
        shard_destroy(shard);
    }
    queue_free(&self->parked);
    sk_map_deinit(&self->map);
    sk_buffer_deinit(&self->writer.reply);
    sk_buffer_deinit(&self->describe.reply);
    free(self->describe.request);
    sk_buffer_deinit(&self->reply);
    free(self->scratch);
    free(self);
}

/* ---- messages in ---- */

/* An older map, or one of another node in this folder, would make us drop shards: never. */
static enum sk_err take_map(struct sk_worker *self, struct sk_span packed, struct sk_diag *d)
{
    struct sk_map map = {0};
    enum sk_err rc = sk_map_decode(&map, packed, d);
    if (rc == SK_ERR_OK && self->map.version != 0 && map.node_id != self->map.node_id)
        rc = sk_fail(d, SK_ERR_INVALID, "the map is of another node");
    if (rc == SK_ERR_OK && (map.version == 0 || map.version < self->map.version))
        rc = sk_fail(d, SK_ERR_INVALID, "the map is older than the one here");
    if (rc != SK_ERR_OK) {
        note(self, SK_WORKER_NOTE_map_refused, map.version, (uint64_t)rc);
        snprintf(self->status.last_error, sizeof self->status.last_error, "%.190s", d->text);
        sk_map_deinit(&map);
        return rc;
    }
    bool is_new = map.version != self->map.version;
    sk_map_deinit(&self->map);
    self->map = map;
    self->status.map_version = map.version;
    if (is_new) {
        note(self, SK_WORKER_NOTE_map_applied, map.version, map.collection_count);
        shards_apply_map(self);
    }
    return SK_ERR_OK;
}

static void on_map(struct sk_worker *self, const struct sk_link_header *header, struct sk_span body)
{
    struct sk_diag d = {0};
    struct sk_reply reply;
    struct sk_span packed;
    if (sk_reply_decode(&reply, body, &d) != SK_ERR_OK || !reply.is_ok ||
        header->status != SK_ERR_OK)
        return; /* asked again by on_time */
    uint64_t now = now_us(self);
    self->is_map_asked = false;
    self->map_next_us = now + MAP_POLL_US;
    if (sk_map_member(reply.map, "map", &packed) && packed.size > 1 &&
        take_map(self, packed, &d) != SK_ERR_OK) {
        self->map_next_us = now + MAP_RETRY_US;
        return;
    }
    if (self->map.version == 0) {
        self->map_next_us = now + MAP_RETRY_US;
        return;
    }
    if (!self->is_ready) {
        self->is_ready = true;
        say_hello(self);
    }
    requests_unpark(self);
}

void sk_worker_on_message(struct sk_worker *self, sk_peer from, struct sk_span bytes)
{
    struct sk_link_header header;
    struct sk_span body;
    struct sk_diag d = {0};
    if (sk_link_decode(&header, &body, bytes, &d) != SK_ERR_OK)
        self->malformed++;
    else if (from == SK_PEER_ROUTER && header.kind == SK_LINK_REQUEST)
        requests_take(self, &header, body);
    else if (from == SK_PEER_ROUTER && header.kind == SK_LINK_STATS)
        stats_answer(self, header.request);
    else if (from == SK_PEER_KEEPER && header.kind == SK_LINK_REPLY)
        on_map(self, &header, body);
    else if (from == SK_PEER_HINTS && header.kind == SK_LINK_HINT)
        self->is_map_wanted = self->is_map_wanted || header.map_version > self->map.version;
    else
        self->malformed++;
    schedule(self);
}

void sk_worker_on_connected(struct sk_worker *self, sk_peer peer)
{
    if (peer == SK_PEER_ROUTER) {
        say_hello(self);
    } else if (peer == SK_PEER_KEEPER || peer == SK_PEER_HINTS) {
        self->is_map_asked = false; /* what was asked before may be lost */
        self->is_map_wanted = true;
    }
    schedule(self);
}

void sk_worker_on_map_hint(struct sk_worker *self, uint64_t version)
{
    if (version > self->map.version)
        self->is_map_wanted = true;
    schedule(self);
}

/* ---- the writer lane: one job at a time, the shards in turn ---- */

/* What the shard wants of the writer lane now. Index work gets its turn after each commit, else a
 * stream of deletes would keep it waiting for ever. */
static enum turn next_turn(struct shard *shard, uint64_t now, struct field **field)
{
    *field = NULL;
    if (shard->store == NULL)
        return TURN_NONE;
    if (shard->admin.first != NULL) {
        shard->is_exclusive = admin_is_exclusive(shard->admin.first);
        return shard->is_exclusive && shard->running_first != NULL ? TURN_NONE : TURN_ADMIN;
    }
    if (shard->is_exclusive) { /* it was answered meanwhile: its deadline, or we stop */
        shard->is_exclusive = false;
        reads_start(shard);
        if (shard->worker->writer.is_submitted) /* a read that ran in place has led to that */
            return TURN_NONE;
    }
    enum turn index = TURN_NONE;
    if (shard->last_turn == TURN_COMMIT)
        index = indexing_turn(shard, now, field);
    if (index != TURN_NONE)
        return index;
    if (writes_are_admitted(shard))
        return TURN_COMMIT;
    if (now >= shard->sweep_us)
        return TURN_SWEEP;
    return indexing_turn(shard, now, field);
}

static void submit_writer(struct shard *shard, enum turn turn, struct field *field)
{
    static void (*const runs[])(struct sk_job *) = {
        [TURN_COMMIT] = turn_commit, [TURN_INDEX] = turn_index, [TURN_SAVE] = turn_save,
        [TURN_FIELDS] = turn_fields, [TURN_SWEEP] = turn_sweep, [TURN_ADMIN] = turn_admin,
    };
    struct sk_worker *self = shard->worker;
    struct writer *writer = &self->writer;
    writer->shard = shard;
    writer->turn = turn;
    writer->field = field;
    writer->reads_ended = reads_ended_below(shard);
    writer->is_stopping = self->is_stopping;
    writer->code = SK_ERR_OK;
    writer->diag = (struct sk_diag){0};
    writer->has_become_ready = false;
    writer->has_checkpoint = false;
    writer->is_submitted = true;
    atomic_store_explicit(&writer->is_wanted, false, memory_order_relaxed);
    writer->job = (struct sk_job){.lane = SK_LANE_WRITE, .run = runs[turn]};
    if (turn == TURN_COMMIT)
        writes_take_batch(shard);
    else if (turn == TURN_ADMIN)
        queue_push(&writer->batch, queue_pop(&shard->admin));
    if (shard->is_exclusive)
        readers_destroy_idle(shard); /* they hold handles of a file that is about to go */
    self->io->submit(self->io->impl, &writer->job);
}

/* Gives the writer lane its next job, if it is free and there is one. */
void schedule(struct sk_worker *self)
{
    uint64_t now = now_us(self);
    if (self->is_map_wanted && !self->is_map_asked)
        ask_map(self, now);
    /* a node may have a thousand shards, and a search changes what none of them wants */
    if (self->writer.is_submitted || now < self->turn_us)
        return;
    self->turn_us = 0;
    struct shard *first = self->turn_next != NULL ? self->turn_next : self->shards;
    struct shard *shard = first;
    while (shard != NULL) {
        struct shard *next = shard->next != NULL ? shard->next : self->shards;
        struct field *field;
        enum turn turn = next_turn(shard, now, &field);
        if (turn != TURN_NONE) {
            self->turn_next = next;
            submit_writer(shard, turn, field);
            return;
        }
        if (self->writer.is_submitted)
            return;
        shard = next != first ? next : NULL;
    }
    self->turn_us = UINT64_MAX;
    for (shard = self->shards; shard != NULL; shard = shard->next)
        if (shard->store != NULL)
            self->turn_us = sooner(self->turn_us,
                                   sooner(shard->sweep_us, indexing_next_us(shard, now)));
}

/* What the job took out of sight waits for the reads that may hold it. */
static void bury(struct shard *shard)
{
    struct writer *writer = &shard->worker->writer;
    for (unsigned f = 0; f < shard->field_count; f++) {
        grave_put_chunks(shard, sk_pending_take_retired(&shard->fields[f].pending));
        if (writer->retired_indexes[f] != NULL) {
            if (!writer->has_become_ready) /* else its heir has taken over */
                note(shard->worker, SK_WORKER_NOTE_index_given_up, shard->number, f);
            grave_put_index(shard, writer->retired_indexes[f]);
            writer->retired_indexes[f] = NULL;
        }
    }
    for (size_t i = shard->dying.count; i > 0; i--) {
        struct dead_row *row = &shard->dying.rows[shard->dying.first + i - 1];
        if (row->after != UINT64_MAX)
            break;
        row->after = shard->read_next;
    }
    graves_dig(shard, false);
}

static void writer_on_done(struct sk_worker *self)
{
    struct writer *writer = &self->writer;
    struct shard *shard = writer->shard;
    uint64_t now = now_us(self);
    writer->is_submitted = false;
    self->turn_us = 0;
    shard->last_turn = writer->turn;
    shard->index_rest_us = 0;
    if (writer->code != SK_ERR_OK) {
        note(self, SK_WORKER_NOTE_turn_failed, writer->turn, (uint64_t)writer->code);
        snprintf(self->status.last_error, sizeof self->status.last_error, "%.190s",
                 writer->diag.text);
        if (writer->turn != TURN_COMMIT && writer->turn != TURN_ADMIN)
            shard->index_rest_us = now + REST_US; /* tried again, but not at once */
    }
    if (writer->has_become_ready || writer->has_checkpoint)
        note(self,
             writer->has_checkpoint ? SK_WORKER_NOTE_checkpoint_written : SK_WORKER_NOTE_index_ready,
             shard->number,
             atomic_load_explicit(&writer->field->index_rows, memory_order_relaxed));
    if (writer->turn == TURN_COMMIT || writer->turn == TURN_SAVE)
        shard->saved_us = now;
    for (unsigned f = 0; f < shard->field_count; f++)
        memcpy(shard->fields[f].note_seen, shard->fields[f].note, sizeof shard->fields[f].note);
    bury(shard);
    uint64_t sweep_us = shard_next_sweep(shard, now);
    if (writer->turn == TURN_SWEEP || sweep_us < shard->sweep_us)
        shard->sweep_us = sweep_us;
    shard->commits += writer->commits;
    self->status.commits += writer->commits;
    self->status.rows_written += writer->rows_written;
    writer->commits = 0;
    writer->rows_written = 0;
    if (writer->turn == TURN_COMMIT)
        writes_on_done(shard);
    else if (writer->turn == TURN_ADMIN)
        admin_on_done(shard);
    writes_refuse_over_budget(shard);
    /* also those of other shards: they came while this job ran, and may have nothing to wait for */
    for (struct shard *one = self->shards; one != NULL; one = one->next)
        requests_waited(one);
    shard_settle(shard);
}

void sk_worker_on_job_done(struct sk_worker *self, struct sk_job *job)
{
    if (job == &self->writer.job)
        writer_on_done(self);
    else if (job == &self->describe.job)
        describe_on_done(self);
    else
        reads_on_done((struct reader *)job);
    schedule(self);
}

/* ---- time ---- */

uint64_t sk_worker_on_time(struct sk_worker *self)
{
    uint64_t now = now_us(self);
    if (now >= self->map_next_us) { /* no answer, or time to look whether a hint was lost */
        self->is_map_asked = false;
        self->is_map_wanted = true;
    }
    uint64_t next = sooner(requests_expire(self, now), shards_retry(self, now));
    next = sooner(next, stats_send(self, now));
    schedule(self);
    next = sooner(next, self->map_next_us);
    /* the end of a job comes back as a call */
    return self->writer.is_submitted ? next : sooner(next, self->turn_us);
}

/* ---- stop ---- */

void sk_worker_stop(struct sk_worker *self)
{
    if (self->is_stopping)
        return;
    self->is_stopping = true;
    self->turn_us = 0;
    struct sk_diag d = {0};
    enum sk_err rc = sk_fail(&d, SK_ERR_UNAVAILABLE, "the worker is stopping");
    queue_refuse(self, &self->parked, rc, &d);
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        queue_refuse(self, &shard->waits, rc, &d);
        queue_refuse(self, &shard->writes, rc, &d);
        queue_refuse(self, &shard->admin, rc, &d);
    }
    const struct sk_link_header header = {.kind = SK_LINK_GOODBYE,
                                          .worker = (uint16_t)self->config.number,
                                          .incarnation = self->incarnation};
    send_to(self, SK_PEER_ROUTER, &header, (struct sk_span){0});
    schedule(self);
}
