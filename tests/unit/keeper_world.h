/* A keeper with a world around it: what it sends is kept, its jobs run when the test says so. */
#ifndef SK_TESTS_KEEPER_WORLD_H
#define SK_TESTS_KEEPER_WORLD_H

#include "actors/metadata-keeper/keeper.h"
#include "proto/link.h"
#include "proto/reply.h"
#include "tests/harness.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WORLD_SENT_MAX = 4096 };

struct sent {
    sk_peer to;
    uint8_t *bytes;
    size_t size;
};

struct world {
    char folder[64]; /* the keeper's own is below */
    char state[96];
    struct sk_io io;
    struct sk_keeper *keeper;
    uint64_t now_us, random_next;
    struct sk_job *job; /* submitted, not yet run */
    struct sent sent[WORLD_SENT_MAX];
    unsigned sent_count;
    uint64_t sequence;
    uint32_t workers;
    const char *admin;
};

static const char world_admin_key[] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";

static inline uint64_t world_mono(void *impl)
{
    return ++((struct world *)impl)->now_us;
}

static inline uint64_t world_random(void *impl)
{
    struct world *self = impl;
    self->random_next = self->random_next * 6364136223846793005ULL + 1442695040888963407ULL;
    return self->random_next ^ self->random_next >> 29;
}

static inline void world_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    struct world *self = impl;
    assert_true(self->sent_count < WORLD_SENT_MAX);
    struct sent *sent = &self->sent[self->sent_count++];
    size_t size = 0;
    for (unsigned i = 0; i < part_count; i++)
        size += parts[i].size;
    *sent = (struct sent){.to = to, .bytes = malloc(size + 1), .size = size};
    assert_non_null(sent->bytes);
    size_t at = 0;
    for (unsigned i = 0; i < part_count; i++) {
        if (parts[i].size > 0)
            memcpy(sent->bytes + at, parts[i].bytes, parts[i].size);
        at += parts[i].size;
    }
}

static inline void world_submit(void *impl, struct sk_job *job)
{
    struct world *self = impl;
    assert_null(self->job);
    assert_int_equal(job->lane, SK_LANE_WRITE);
    self->job = job;
}

static inline void world_note(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    (void)impl, (void)kind, (void)a, (void)b;
}

static inline void world_forget_sent(struct world *self)
{
    for (unsigned i = 0; i < self->sent_count; i++)
        free(self->sent[i].bytes);
    self->sent_count = 0;
}

static inline enum sk_err world_try_open(struct world *self, struct sk_diag *d)
{
    const struct sk_keeper_config config = {.folder = self->state,
                                            .worker_count = self->workers,
                                            .admin_public_key = self->admin,
                                            .no_sync = true};
    return sk_keeper_new(&self->keeper, &config, &self->io, d);
}

static inline void world_open(struct world *self)
{
    struct sk_diag d = {0};
    enum sk_err err = world_try_open(self, &d);
    if (err != SK_ERR_OK)
        fail_msg("the keeper does not open: %s", d.text);
}

/* As a crash: what was submitted and did not run is gone, nothing is said. */
static inline void world_crash(struct world *self)
{
    sk_keeper_destroy(&self->keeper);
    self->job = NULL;
    world_forget_sent(self);
}

static inline int world_setup(void **state)
{
    struct world *self = calloc(1, sizeof *self);
    assert_non_null(self);
    strcpy(self->folder, "/tmp/skk-XXXXXX");
    assert_non_null(mkdtemp(self->folder));
    (void)snprintf(self->state, sizeof self->state, "%s/keeper", self->folder);
    self->io = (struct sk_io){.impl = self,
                              .mono_us = world_mono,
                              .wall_us = world_mono,
                              .random = world_random,
                              .send = world_send,
                              .submit = world_submit,
                              .note = world_note};
    self->random_next = 7;
    self->workers = 1;
    self->admin = world_admin_key;
    world_open(self);
    *state = self;
    return 0;
}

static inline int world_remove(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static inline int world_teardown(void **state)
{
    struct world *self = *state;
    world_crash(self);
    (void)nftw(self->folder, world_remove, 8, FTW_DEPTH | FTW_PHYS);
    free(self);
    return 0;
}

/* ---- asking ---- */

struct question {
    enum sk_op op;
    const char *collection, *name, *public_key, *role_name;
    struct sk_span vectors, payload, index, schema;
    uint32_t shards;
    uint64_t map_version;
    bool has_map_version;
    enum sk_role role;  /* 0: LINK for operations of the node, else admin */
    sk_peer from;       /* 0: the router */
    uint64_t sequence;  /* 0: the next one; also the number of the request */
    uint32_t deadline_ms;
};

static inline uint64_t world_bit(enum sk_field field)
{
    return (uint64_t)1 << field;
}

/* Sends it; returns the number of the request. */
static inline uint64_t world_send_question(struct world *self, const struct question *question)
{
    struct sk_request request = {.op = question->op, .deadline_ms = 5000};
    request.id = (struct sk_request_id){.is_present = true, .number = 77};
    if (question->collection != NULL) {
        request.collection = sk_span_text(question->collection);
        request.present |= world_bit(SK_FIELD_collection);
    }
    if (question->name != NULL) {
        request.name = sk_span_text(question->name);
        request.present |= world_bit(SK_FIELD_name);
    }
    if (question->public_key != NULL) {
        request.public_key = sk_span_text(question->public_key);
        request.present |= world_bit(SK_FIELD_public_key);
    }
    if (question->role_name != NULL) {
        request.role = sk_span_text(question->role_name);
        request.present |= world_bit(SK_FIELD_role);
    }
    if (question->vectors.bytes != NULL) {
        request.vector_schema = question->vectors;
        request.present |= world_bit(SK_FIELD_vector_schema);
    }
    if (question->payload.bytes != NULL) {
        request.payload_schema = question->payload;
        request.present |= world_bit(SK_FIELD_payload_schema);
    }
    if (question->index.bytes != NULL) {
        request.index_schema = question->index;
        request.present |= world_bit(SK_FIELD_index_schema);
    }
    if (question->schema.bytes != NULL) {
        request.schema = question->schema;
        request.present |= world_bit(SK_FIELD_schema);
    }
    if (question->shards != 0) {
        request.shards = question->shards;
        request.present |= world_bit(SK_FIELD_shards);
    }
    if (question->has_map_version) {
        request.map_version = question->map_version;
        request.present |= world_bit(SK_FIELD_map_version);
    }
    uint64_t sequence = question->sequence != 0 ? question->sequence : ++self->sequence;
    bool is_link = question->op == SK_OP_MAP_GET || question->op == SK_OP_CREATE_FROM_SCHEMA;
    struct sk_link_header header = {
        .kind = SK_LINK_REQUEST,
        .role = question->role != SK_ROLE_NONE ? question->role
                : is_link                      ? SK_ROLE_LINK
                                               : SK_ROLE_ADMIN,
        .request = sequence,
        .deadline_ms = question->deadline_ms != 0 ? question->deadline_ms : 5000,
        .incarnation = 99,
        .sequence = sequence,
    };
    struct sk_buffer bytes = {0};
    sk_link_header_encode(sk_buffer_grow(&bytes, SK_LINK_HEADER_BYTES), &header);
    sk_request_encode(&bytes, &request);
    assert_false(bytes.is_broken);
    sk_keeper_on_message(self->keeper, question->from != 0 ? question->from : SK_KEEPER_PEER_ROUTER,
                         sk_buffer_span(&bytes));
    sk_buffer_deinit(&bytes);
    return sequence;
}

/* Runs what is submitted, until nothing is. */
static inline void world_run_jobs(struct world *self)
{
    while (self->job != NULL) {
        struct sk_job *job = self->job;
        self->job = NULL;
        job->run(job);
        sk_keeper_on_job_done(self->keeper, job);
    }
}

struct answer {
    struct sk_link_header header;
    struct sk_reply reply; /* borrowed from what was sent */
    char message[400];
    char field[80];
};

/* The last reply to that request; false when there is none. */
static inline bool world_find(struct world *self, uint64_t request, struct answer *out)
{
    for (unsigned i = self->sent_count; i-- > 0;) {
        struct sk_span body;
        struct sk_diag d = {0};
        struct sk_span bytes = sk_span_of(self->sent[i].bytes, self->sent[i].size);
        assert_int_equal(sk_link_decode(&out->header, &body, bytes, &d), SK_ERR_OK);
        if (out->header.kind != SK_LINK_REPLY || out->header.request != request)
            continue;
        assert_int_equal(sk_reply_decode(&out->reply, body, &d), SK_ERR_OK);
        assert_int_equal(out->reply.is_ok, out->header.status == SK_ERR_OK);
        assert_int_equal(out->reply.code, out->header.status);
        (void)snprintf(out->message, sizeof out->message, "%.*s", (int)out->reply.error_message.size,
                       out->reply.error_message.bytes == NULL
                           ? ""
                           : (const char *)out->reply.error_message.bytes);
        (void)snprintf(out->field, sizeof out->field, "%.*s", (int)out->reply.error_field.size,
                       out->reply.error_field.bytes == NULL
                           ? ""
                           : (const char *)out->reply.error_field.bytes);
        return true;
    }
    return false;
}

static inline struct answer world_ask(struct world *self, const struct question *question)
{
    struct answer answer = {0};
    uint64_t request = world_send_question(self, question);
    world_run_jobs(self);
    assert_true(world_find(self, request, &answer));
    return answer;
}

static inline enum sk_err world_code(struct world *self, const struct question *question)
{
    return world_ask(self, question).header.status;
}

/* {"dim": 8} */
static inline struct sk_span world_vectors(void)
{
    static const uint8_t bytes[] = "\x81\xa3"
                                   "dim\x08";
    return sk_span_of(bytes, sizeof bytes - 1);
}

static inline enum sk_err world_create(struct world *self, const char *name)
{
    return world_code(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                               .collection = name,
                                               .vectors = world_vectors()});
}

static inline enum sk_err world_drop(struct world *self, const char *name)
{
    return world_code(self, &(struct question){.op = SK_OP_DROP_COLLECTION, .collection = name});
}

static inline void world_check(struct world *self)
{
    struct sk_diag d = {0};
    if (sk_keeper_check(self->keeper, &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
}

#endif
