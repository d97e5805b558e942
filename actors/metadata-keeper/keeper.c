#include "actors/metadata-keeper/internal.h"

#include <stdio.h>
#include <stdlib.h>

/* The largest request is a collection with every field it may have. */
enum { CONFLICTS_MAX = 8, RETRY_US = 500000, FRAME_BYTES_MAX = 256 * 1024 };

const struct sk_note_kind sk_keeper_notes[SK_KEEPER_NOTE_COUNT] = {SK_KEEPER_NOTES(SK_NOTE_KIND)};

static void note(const struct sk_keeper *self, enum sk_keeper_note kind, uint64_t a, uint64_t b)
{
    self->io->note(self->io->impl, kind, a, b);
}

static uint64_t now_us(const struct sk_keeper *self)
{
    return self->io->mono_us(self->io->impl);
}

static void remember_error(struct sk_keeper *self, const struct sk_diag *d)
{
    (void)snprintf(self->counters.last_error, sizeof self->counters.last_error, "%.190s", d->text);
}

/* ---- answers ---- */

static void send_reply(struct sk_keeper *self, sk_peer to, const struct sk_link_header *asked,
                       enum sk_err code)
{
    if (self->reply.is_broken) { /* no memory even for that: the deadline of who asked answers */
        sk_buffer_deinit(&self->reply);
        return;
    }
    struct sk_link_header header = {
        .kind = SK_LINK_REPLY,
        .status = code,
        .shard = asked->shard,
        .worker = asked->worker,
        .request = asked->request,
        .incarnation = asked->incarnation,
        .sequence = asked->sequence,
        .map_version = self->map.version,
    };
    memcpy(header.collection, asked->collection, sizeof header.collection);
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, &header);
    const struct sk_span parts[2] = {sk_span_of(bytes, sizeof bytes), sk_buffer_span(&self->reply)};
    self->io->send(self->io->impl, to, parts, 2);
    self->counters.requests++;
    if (code != SK_ERR_OK)
        self->counters.refused++;
}

static void answer(struct sk_keeper *self, sk_peer to, const struct sk_link_header *asked,
                   const struct sk_request_id *id, enum sk_err code, const struct sk_diag *d)
{
    sk_buffer_clear(&self->reply);
    if (code == SK_ERR_OK)
        sk_reply_ok(&self->reply, id);
    else
        sk_reply_error(&self->reply, id, code, d);
    send_reply(self, to, asked, code);
}

static void publish_hint(struct sk_keeper *self)
{
    const struct sk_link_header header = {.kind = SK_LINK_HINT, .map_version = self->map.version};
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, &header);
    const struct sk_span part = sk_span_of(bytes, sizeof bytes);
    self->io->send(self->io->impl, SK_KEEPER_PEER_HINTS, &part, 1);
    self->hint_next_us = now_us(self) + SK_KEEPER_HINT_US;
}

/* ---- the queue of changes ---- */

static struct command *queue_pop(struct sk_keeper *self)
{
    struct command *command = self->first;
    self->first = command->next;
    if (self->first == NULL)
        self->last = NULL;
    self->queued--;
    return command;
}

static void queue_push(struct sk_keeper *self, struct command *command)
{
    command->next = NULL;
    if (self->last == NULL)
        self->first = command;
    else
        self->last->next = command;
    self->last = command;
    self->queued++;
}

/* A refused change must not be applied by a late copy of it either. */
static void remember_refused(struct sk_keeper *self, const struct sk_link_header *header,
                             enum sk_err code, const struct sk_diag *d)
{
    struct refused *slot = &self->refused[self->refused_next++ % SK_KEEPER_REFUSED_MAX];
    slot->stamp = (struct stamp){header->incarnation, header->sequence};
    slot->code = code;
    slot->diag = *d;
}

static const struct refused *find_refused(const struct sk_keeper *self, const struct stamp *stamp)
{
    for (unsigned i = 0; i < SK_KEEPER_REFUSED_MAX; i++)
        if (self->refused[i].code != SK_ERR_OK &&
            self->refused[i].stamp.incarnation == stamp->incarnation &&
            self->refused[i].stamp.sequence == stamp->sequence)
            return &self->refused[i];
    return NULL;
}

/* Answers the first command of the queue and drops it. */
static void finish_first(struct sk_keeper *self, enum sk_err code, const struct sk_diag *d)
{
    struct command *command = queue_pop(self);
    if (code != SK_ERR_OK)
        remember_refused(self, &command->header, code, d);
    answer(self, command->from, &command->header, &command->request.id, code, d);
    free(command);
}

/* Brings the map here up to what the state says. */
static bool catch_up(struct sk_keeper *self, struct sk_diag *d)
{
    enum sk_err err = self->state.watch(self->state.impl, sk_keeper_on_pair, self, d);
    self->is_stale = err != SK_ERR_OK;
    if (self->is_stale) {
        remember_error(self, d);
        note(self, SK_KEEPER_NOTE_state_unread, err, self->map.version);
    }
    return !self->is_stale;
}

/* True: the first command was answered without a commit. */
static bool is_answered_early(struct sk_keeper *self, const struct command *command)
{
    const struct stamp stamp = {command->header.incarnation, command->header.sequence};
    struct sk_diag d = {0};
    if (sk_keeper_was_applied(self, &stamp)) {
        finish_first(self, SK_ERR_OK, &d);
        return true;
    }
    const struct refused *refused = find_refused(self, &stamp);
    enum sk_err code = SK_ERR_OK;
    if (refused != NULL) {
        d = refused->diag;
        code = refused->code;
    } else if (now_us(self) >= command->deadline_us) {
        code = sk_fail(&d, SK_ERR_DEADLINE, "the deadline of %u ms passed before the change began",
                       command->header.deadline_ms);
    } else if (self->is_stopping) {
        code = sk_fail(&d, SK_ERR_UNAVAILABLE, "the keeper is stopping");
    } else {
        code = sk_keeper_plan(self, command, &self->commit, &d);
        if (code == SK_ERR_OK && self->commit.change_count > 0)
            return false;
    }
    finish_first(self, code, &d);
    return true;
}

/* Gives the writer its next change, if it is free and there is one. */
static void schedule(struct sk_keeper *self)
{
    while (!self->commit.is_submitted && self->first != NULL && !self->is_stale) {
        if (is_answered_early(self, self->first))
            continue;
        self->commit.is_submitted = true;
        self->commit.job = (struct sk_job){.run = sk_keeper_commit_run, .lane = SK_LANE_WRITE};
        self->io->submit(self->io->impl, &self->commit.job);
    }
}

void sk_keeper_on_job_done(struct sk_keeper *self, struct sk_job *job)
{
    struct sk_diag d = {0};
    SK_CHECK(job == &self->commit.job && self->commit.is_submitted && self->first != NULL);
    self->commit.is_submitted = false;
    bool is_known = catch_up(self, &d);
    if (self->commit.code != SK_ERR_OK) {
        remember_error(self, &self->commit.diag);
        note(self, SK_KEEPER_NOTE_change_failed, self->commit.code, self->map.version);
        struct sk_diag reason = self->commit.diag;
        finish_first(self, self->commit.code, &reason);
    } else if (!self->commit.is_applied) {
        /* another keeper was faster: the command, still the first one, is planned anew */
        note(self, SK_KEEPER_NOTE_change_conflict, self->map.version, self->conflicts + 1);
        if (++self->conflicts >= CONFLICTS_MAX) {
            enum sk_err code = sk_fail(&d, SK_ERR_BUSY, "other changes come all the time");
            finish_first(self, code, &d);
            self->conflicts = 0;
        }
    } else {
        self->conflicts = 0;
        self->counters.changes++;
        note(self, SK_KEEPER_NOTE_map_changed, self->map.version, self->first->request.op);
        if (!is_known) /* durable, but what it led to cannot be told: the outcome is unknown */
            finish_first(self, SK_ERR_UNAVAILABLE, &d);
        else
            finish_first(self, SK_ERR_OK, &d);
        publish_hint(self);
    }
    schedule(self);
}

/* ---- requests ---- */

static void answer_map(struct sk_keeper *self, sk_peer from, const struct sk_link_header *header,
                       const struct sk_request *request)
{
    struct sk_reply_writer reply;
    bool is_wanted = !sk_request_has(request, SK_FIELD_map_version) ||
                     request->map_version < self->map.version;
    if (is_wanted && self->packed.size == 0)
        sk_map_encode(&self->packed, &self->map);
    if (self->packed.is_broken) {
        struct sk_diag d = {0};
        sk_buffer_deinit(&self->packed);
        enum sk_err code = sk_fail(&d, SK_ERR_NOMEM, "no memory for the map");
        answer(self, from, header, &request->id, code, &d);
        return;
    }
    sk_buffer_clear(&self->reply);
    sk_reply_begin(&reply, &self->reply, &request->id);
    sk_reply_key(&reply, "map");
    if (is_wanted)
        sk_put_raw(&self->reply, sk_buffer_span(&self->packed));
    else
        sk_put_nil(&self->reply);
    sk_reply_end(&reply);
    send_reply(self, from, header, SK_ERR_OK);
}

static void answer_list(struct sk_keeper *self, sk_peer from, const struct sk_link_header *header,
                        const struct sk_request *request)
{
    struct sk_reply_writer reply;
    sk_buffer_clear(&self->reply);
    sk_reply_begin(&reply, &self->reply, &request->id);
    if (request->op == SK_OP_LIST_COLLECTIONS) {
        sk_reply_key(&reply, "collections");
        sk_put_array(&self->reply, self->map.collection_count);
        for (uint32_t i = 0; i < self->map.collection_count; i++)
            sk_put_text(&self->reply, self->map.collections[i].schema.name);
    } else {
        sk_reply_key(&reply, "keys");
        sk_put_array(&self->reply, self->map.key_count);
        for (uint32_t i = 0; i < self->map.key_count; i++) {
            sk_put_map(&self->reply, 3);
            sk_put_text(&self->reply, "name");
            sk_put_text(&self->reply, self->map.keys[i].name);
            sk_put_text(&self->reply, "public_key");
            sk_put_text(&self->reply, self->map.keys[i].public_key);
            sk_put_text(&self->reply, "role");
            sk_put_text(&self->reply, sk_role_name(self->map.keys[i].role));
        }
    }
    sk_reply_end(&reply);
    send_reply(self, from, header, SK_ERR_OK);
}

/* Who may ask what: workers only for the map, a client what its role allows. */
static enum sk_err check_caller(sk_peer from, const struct sk_link_header *header, enum sk_op op,
                                struct sk_diag *d)
{
    if (op != SK_OP_MAP_GET && from != SK_KEEPER_PEER_ROUTER)
        return sk_fail(d, SK_ERR_FORBIDDEN, "a worker does not ask for '%s'", sk_op_name(op));
    if (header->role < sk_op_role(op))
        return sk_fail(d, SK_ERR_FORBIDDEN, "'%s' wants the role %s, this key has %s",
                       sk_op_name(op), sk_role_name(sk_op_role(op)), sk_role_name(header->role));
    return SK_ERR_OK;
}

static enum sk_err enqueue(struct sk_keeper *self, struct command *command, struct sk_diag *d)
{
    if (command->header.incarnation == 0)
        return sk_fail(d, SK_ERR_INVALID, "a change without the router's stamp");
    if (self->is_stopping)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "the keeper is stopping");
    if (self->queued >= SK_KEEPER_QUEUE_MAX)
        return sk_fail(d, SK_ERR_BUSY, "%d changes wait already", SK_KEEPER_QUEUE_MAX);
    queue_push(self, command);
    return SK_ERR_OK;
}

static void on_request(struct sk_keeper *self, sk_peer from, const struct sk_link_header *header,
                       struct sk_span frame)
{
    struct sk_diag d = {0};
    struct sk_request *request = NULL;
    struct sk_request_id id = {0};
    enum sk_err code = SK_ERR_OK;
    struct command *command =
        frame.size > FRAME_BYTES_MAX ? NULL : malloc(sizeof *command + frame.size);
    if (command == NULL) {
        code = frame.size > FRAME_BYTES_MAX
                   ? sk_fail(&d, SK_ERR_TOO_LARGE, "a request of %zu bytes, the keeper takes %d",
                             frame.size, FRAME_BYTES_MAX)
                   : sk_fail(&d, SK_ERR_NOMEM, "no memory for a request of %zu bytes", frame.size);
        answer(self, from, header, &id, code, &d);
        return;
    }
    *command = (struct command){.header = *header, .from = from, .size = frame.size};
    command->deadline_us = now_us(self) + (uint64_t)header->deadline_ms * 1000;
    memcpy(command->frame, frame.bytes, frame.size);
    request = &command->request;
    struct sk_span copy = sk_span_of(command->frame, frame.size);
    code = sk_request_decode(request, copy, &d);
    if (code != SK_ERR_OK) {
        struct sk_envelope envelope = {0};
        struct sk_diag ignored = {0};
        enum sk_err ignored_code = sk_envelope_decode(&envelope, copy, &ignored);
        (void)ignored_code; /* the id is filled wherever it could be read */
        id = envelope.id;
    } else {
        id = request->id;
        code = check_caller(from, header, request->op, &d);
    }
    if (code == SK_ERR_OK && request->op == SK_OP_MAP_GET) {
        answer_map(self, from, header, request);
    } else if (code == SK_ERR_OK &&
               (request->op == SK_OP_LIST_COLLECTIONS || request->op == SK_OP_LIST_KEYS)) {
        answer_list(self, from, header, request);
    } else {
        if (code == SK_ERR_OK)
            code = enqueue(self, command, &d);
        if (code == SK_ERR_OK)
            return; /* the queue has it */
        if (header->incarnation != 0)
            remember_refused(self, header, code, &d);
        answer(self, from, header, &id, code, &d);
    }
    free(command);
}

void sk_keeper_on_message(struct sk_keeper *self, sk_peer from, struct sk_span bytes)
{
    struct sk_link_header header;
    struct sk_span body;
    struct sk_diag d = {0};
    bool is_known = from == SK_KEEPER_PEER_ROUTER ||
                    (from >= SK_KEEPER_PEER_WORKER_0 &&
                     from < SK_KEEPER_PEER_WORKER_0 + (sk_peer)SK_WORKERS_MAX);
    if (!is_known || sk_link_decode(&header, &body, bytes, &d) != SK_ERR_OK ||
        header.kind != SK_LINK_REQUEST) {
        self->counters.malformed++;
        note(self, SK_KEEPER_NOTE_message_malformed, from, bytes.size);
        return;
    }
    on_request(self, from, &header, body);
    schedule(self);
}

/* ---- time ---- */

/* Answers what waits behind the first one past its deadline. The first one is being committed, or is
 * looked at by schedule(). */
static uint64_t expire(struct sk_keeper *self, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    struct command *waiting = self->first;
    if (waiting == NULL)
        return next;
    struct command *before = self->commit.is_submitted ? waiting : NULL;
    struct command *command = before != NULL ? before->next : waiting;
    while (command != NULL) {
        struct command *after = command->next;
        if (command->deadline_us > now) {
            next = command->deadline_us < next ? command->deadline_us : next;
            before = command;
        } else {
            struct sk_diag d = {0};
            enum sk_err code = sk_fail(&d, SK_ERR_DEADLINE,
                                       "the deadline of %u ms passed before the change began",
                                       command->header.deadline_ms);
            if (before == NULL)
                self->first = after;
            else
                before->next = after;
            if (after == NULL)
                self->last = before;
            self->queued--;
            remember_refused(self, &command->header, code, &d);
            answer(self, command->from, &command->header, &command->request.id, code, &d);
            free(command);
        }
        command = after;
    }
    return next;
}

uint64_t sk_keeper_on_time(struct sk_keeper *self)
{
    uint64_t now = now_us(self);
    struct sk_diag d = {0};
    if (self->is_stale && !self->commit.is_submitted && catch_up(self, &d))
        publish_hint(self);
    schedule(self);
    uint64_t next = expire(self, now);
    if (now >= self->hint_next_us)
        publish_hint(self);
    if (self->is_stale && now + RETRY_US < next)
        next = now + RETRY_US;
    return next < self->hint_next_us ? next : self->hint_next_us;
}

/* ---- life ---- */

/* A new state: who this node is, and its first key. */
static enum sk_err make_state(struct sk_keeper *self, const struct sk_keeper_config *config,
                              struct sk_diag *d)
{
    struct commit *commit = &self->commit;
    enum sk_err err = sk_keeper_reserve(self, d);
    if (err != SK_ERR_OK)
        return err;
    sk_keeper_commit_begin(commit, 0);
    if (config->admin_public_key != NULL) {
        struct sk_map_key key = {.name = "admin", .role = SK_ROLE_ADMIN};
        err = sk_public_key_check(sk_span_text(config->admin_public_key), d);
        if (err != SK_ERR_OK)
            return sk_wrap(d, err, "the admin's key");
        memcpy(key.public_key, config->admin_public_key, SK_Z85_KEY_BYTES);
        sk_keeper_put_key(commit, &key);
    }
    sk_keeper_put_number(commit, "node_id", self->io->random(self->io->impl) | 1);
    sk_keeper_put_number(commit, "workers", self->worker_count);
    sk_keeper_put_number(commit, "version", 1);
    err = sk_keeper_commit_close(commit, d);
    if (err != SK_ERR_OK)
        return err;
    bool is_applied = false;
    const struct sk_state_pair absent = {sk_span_text("version"), {0}};
    const struct sk_state_txn txn = {.compares = &absent,
                                     .compare_count = 1,
                                     .changes = commit->pairs,
                                     .change_count = commit->change_count};
    err = self->state.commit(self->state.impl, &txn, &is_applied, d);
    return err != SK_ERR_OK ? err : self->state.watch(self->state.impl, sk_keeper_on_pair, self, d);
}

static enum sk_err share_out(struct sk_keeper *self, struct sk_diag *d)
{
    enum sk_err err = sk_keeper_plan_workers(self, &self->commit, d);
    if (err != SK_ERR_OK)
        return err;
    sk_keeper_commit_run(&self->commit.job);
    if (self->commit.code != SK_ERR_OK) {
        *d = self->commit.diag;
        return self->commit.code;
    }
    return self->state.watch(self->state.impl, sk_keeper_on_pair, self, d);
}

enum sk_err sk_keeper_new(struct sk_keeper **out, const struct sk_keeper_config *config,
                          const struct sk_io *io, struct sk_diag *d)
{
    *out = NULL;
    if (config->worker_count < 1 || config->worker_count > SK_WORKERS_MAX)
        return sk_fail(d, SK_ERR_INVALID, "workers: %u, want 1..%d", config->worker_count,
                       SK_WORKERS_MAX);
    struct sk_keeper *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the keeper");
    self->io = io;
    self->worker_count = config->worker_count;
    const struct sk_state_lmdb_config engine = {
        .folder = config->folder, .bytes_max = config->state_bytes_max, .no_sync = config->no_sync};
    enum sk_err err = sk_state_lmdb_open(&self->state, &engine, d);
    self->commit.state = &self->state;
    if (err == SK_ERR_OK)
        err = self->state.watch(self->state.impl, sk_keeper_on_pair, self, d);
    if (err == SK_ERR_OK && self->map.version == 0)
        err = make_state(self, config, d);
    if (err == SK_ERR_OK && self->workers_known != self->worker_count)
        err = share_out(self, d);
    if (err == SK_ERR_OK)
        err = sk_keeper_check(self, d);
    if (err != SK_ERR_OK) {
        sk_keeper_destroy(&self);
        return err;
    }
    *out = self;
    return SK_ERR_OK;
}

void sk_keeper_destroy(struct sk_keeper **self_at)
{
    struct sk_keeper *self = *self_at;
    if (self == NULL)
        return;
    *self_at = NULL;
    while (self->first != NULL)
        free(queue_pop(self));
    if (self->state.close != NULL)
        self->state.close(self->state.impl);
    sk_map_deinit(&self->map);
    sk_buffer_deinit(&self->commit.bytes);
    sk_buffer_deinit(&self->packed);
    sk_buffer_deinit(&self->reply);
    free(self);
}

void sk_keeper_stop(struct sk_keeper *self)
{
    self->is_stopping = true;
    schedule(self);
}

void sk_keeper_get_status(const struct sk_keeper *self, struct sk_keeper_status *out)
{
    *out = self->counters;
    out->map_version = self->map.version;
    out->collections = self->map.collection_count;
    out->keys = self->map.key_count;
    out->queued = self->queued;
    out->is_stopped = self->is_stopping && !self->commit.is_submitted && self->first == NULL;
}

const struct sk_map *sk_keeper_map(const struct sk_keeper *self)
{
    return &self->map;
}

enum sk_err sk_keeper_check(const struct sk_keeper *self, struct sk_diag *d)
{
    const struct sk_map *map = &self->map;
    if (map->version == 0 || map->node_id == 0)
        return sk_fail(d, SK_ERR_INTERNAL, "the keeper's state has no version or no node");
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct sk_map_collection *collection = &map->collections[i];
        const char *name = collection->schema.name;
        if (i > 0 && strcmp(map->collections[i - 1].schema.name, name) >= 0)
            return sk_fail(d, SK_ERR_INTERNAL, "collection '%s' is out of order", name);
        if (sk_map_find_uuid(map, collection->schema.uuid) != collection)
            return sk_fail(d, SK_ERR_INTERNAL, "collection '%s' has the uuid of another", name);
        for (uint32_t s = 0; s < collection->schema.shard_count; s++)
            if (collection->workers[s] >= self->worker_count)
                return sk_fail(d, SK_ERR_INTERNAL, "shard %u of '%s' is at worker %u of %u", s, name,
                               collection->workers[s], self->worker_count);
    }
    for (uint32_t i = 0; i < map->key_count; i++) {
        if (i > 0 && strcmp(map->keys[i - 1].name, map->keys[i].name) >= 0)
            return sk_fail(d, SK_ERR_INTERNAL, "key '%s' is out of order", map->keys[i].name);
        for (uint32_t k = 0; k < i; k++)
            if (strcmp(map->keys[k].public_key, map->keys[i].public_key) == 0)
                return sk_fail(d, SK_ERR_INTERNAL, "keys '%s' and '%s' are one", map->keys[k].name,
                               map->keys[i].name);
    }
    return SK_ERR_OK;
}
