/* What is asked of the worker of worker_world.h, and what it answered. */
#ifndef SK_TESTS_WORKER_REQUESTS_H
#define SK_TESTS_WORKER_REQUESTS_H

#include "tests/unit/worker_world.h"

/* ---- requests ---- */

struct asked {
    struct sk_buffer frame;
    size_t at;
    uint32_t count;
    unsigned collection;
    bool is_write;
    uint64_t sequence;    /* 0: the next one */
    uint32_t deadline_ms; /* 0: DEADLINE_MS */
};

static inline struct asked begin(const char *op, unsigned collection)
{
    struct asked self = {.collection = collection, .count = 3};
    self.at = sk_put_map_open(&self.frame);
    sk_put_text(&self.frame, "v");
    sk_put_u64(&self.frame, 1);
    sk_put_text(&self.frame, "op");
    sk_put_text(&self.frame, op);
    sk_put_text(&self.frame, "id");
    sk_put_u64(&self.frame, 77);
    self.is_write = strcmp(op, "upsert") == 0 || strcmp(op, "delete") == 0 ||
                    strcmp(op, "set_payload") == 0;
    return self;
}

static inline struct sk_buffer *key(struct asked *self, const char *name)
{
    sk_put_text(&self->frame, name);
    self->count++;
    return &self->frame;
}

/* Sends it; the number under which its reply will come. */
static inline uint64_t post(struct world *self, struct asked *asked)
{
    struct sk_map_collection *c = &self->map.collections[asked->collection];
    sk_put_text(key(asked, "collection"), c->schema.name);
    sk_put_count_at(&asked->frame, asked->at, asked->count);
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = SK_ROLE_ADMIN,
                                    .request = ++self->request_next,
                                    .deadline_ms = asked->deadline_ms ? asked->deadline_ms : DEADLINE_MS,
                                    .schema_version = c->schema.version,
                                    .map_version = self->map.version};
    memcpy(header.collection, c->schema.uuid, SK_UUID_BYTES);
    if (asked->is_write) {
        header.incarnation = self->incarnation;
        header.sequence = asked->sequence != 0 ? asked->sequence : ++self->sequence;
    }
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, asked->frame.bytes, asked->frame.size);
    sk_worker_on_message(self->worker, SK_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    sk_buffer_deinit(&asked->frame);
    return header.request;
}

static inline bool reply_of(struct world *self, uint64_t request, struct sk_reply *out)
{
    struct sk_diag d = {0};
    for (unsigned i = 0; i < REPLIES_MAX; i++)
        if (self->replies[i].bytes != NULL && self->replies[i].request == request) {
            struct sk_span bytes = sk_span_of(self->replies[i].bytes, self->replies[i].size);
            assert_int_equal(sk_reply_decode(out, bytes, &d), SK_ERR_OK);
            return true;
        }
    return false;
}

static inline struct sk_reply ask(struct world *self, struct asked asked)
{
    struct sk_reply reply = {0};
    uint64_t request = post(self, &asked);
    for (unsigned turns = 0; turns < 20000; turns++) {
        if (reply_of(self, request, &reply))
            return reply;
        pass(self, 1000);
    }
    fail_msg("no answer");
    return reply;
}

static inline struct sk_reply ask_ok(struct world *self, struct asked asked)
{
    struct sk_reply reply = ask(self, asked);
    if (!reply.is_ok)
        fail_msg("error %d: %.*s", reply.code, (int)reply.error_message.size,
                 (const char *)reply.error_message.bytes);
    return reply;
}

static inline uint64_t number_of(const struct sk_reply *reply, const char *name)
{
    uint64_t value = 0;
    assert_true(sk_map_member_u64(reply->map, name, &value));
    return value;
}

static inline bool bool_of(const struct sk_reply *reply, const char *name)
{
    bool value = false;
    assert_true(sk_map_member_bool(reply->map, name, &value));
    return value;
}

/* The same vector for the same id and salt, whoever asks. */
static inline void vector_of(uint64_t id, uint64_t salt, float *out)
{
    uint64_t state = (id + 1) * 0x9E3779B97F4A7C15U ^ (salt + 1) * 0xD1B54A32D192ED03U;
    for (unsigned i = 0; i < DIM; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out[i] = (float)(int32_t)(state >> 32) / 2147483648.0F;
    }
}

static const char *const colors[3] = {"red", "green", "blue"};

static inline struct asked upsert_of(unsigned collection, uint64_t first, uint64_t count, uint64_t salt)
{
    struct asked asked = begin("upsert", collection);
    sk_put_array(key(&asked, "ids"), count);
    for (uint64_t i = 0; i < count; i++)
        sk_put_u64(&asked.frame, first + i);
    sk_put_bin_head(key(&asked, "vectors"), count * DIM * sizeof(float));
    for (uint64_t i = 0; i < count; i++) {
        float vector[DIM];
        vector_of(first + i, salt, vector);
        sk_buffer_append(&asked.frame, vector, sizeof vector);
    }
    sk_put_array(key(&asked, "payloads"), count);
    for (uint64_t i = 0; i < count; i++) {
        sk_put_map(&asked.frame, 2);
        sk_put_text(&asked.frame, "color");
        sk_put_text(&asked.frame, colors[(first + i) % 3]);
        sk_put_text(&asked.frame, "size");
        sk_put_u64(&asked.frame, first + i);
    }
    return asked;
}

static inline void upsert(struct world *self, unsigned collection, uint64_t first, uint64_t count,
                   uint64_t salt)
{
    struct sk_reply reply = ask_ok(self, upsert_of(collection, first, count, salt));
    assert_int_equal(number_of(&reply, "upserted"), count);
}

static inline struct asked with_ids(const char *op, unsigned collection, const uint64_t *ids, size_t count)
{
    struct asked asked = begin(op, collection);
    sk_put_array(key(&asked, "ids"), count);
    for (size_t i = 0; i < count; i++)
        sk_put_u64(&asked.frame, ids[i]);
    return asked;
}

static inline uint64_t count_of(struct world *self, unsigned collection)
{
    struct sk_reply reply = ask_ok(self, begin("count", collection));
    return number_of(&reply, "count");
}

static inline struct asked search_of(unsigned collection, uint64_t id, uint64_t salt, uint64_t limit)
{
    float vector[DIM];
    struct asked asked = begin("search", collection);
    vector_of(id, salt, vector);
    sk_put_bin(key(&asked, "vector"), vector, sizeof vector);
    sk_put_u64(key(&asked, "limit"), limit);
    return asked;
}

/* Ids of the hits (or of one of many lists of them), in order; returns how many. */
static inline size_t ids_of(const struct sk_reply *reply, const char *list, uint64_t *ids, double *scores)
{
    struct sk_list hits;
    size_t count = 0;
    assert_true(sk_map_member_list(reply->map, list, &hits));
    struct sk_reader from = sk_reader_of(hits.members);
    for (uint32_t i = 0; i < hits.count; i++) {
        struct sk_span hit, score;
        struct sk_diag d = {0};
        assert_int_equal(sk_read_raw(&from, 8, &hit, &d), SK_ERR_OK);
        assert_true(sk_map_member_u64(hit, "id", &ids[count]));
        if (scores != NULL) {
            struct sk_value value;
            assert_true(sk_map_member(hit, "score", &score));
            struct sk_reader at = sk_reader_of(score);
            assert_int_equal(sk_read(&at, &value, &d), SK_ERR_OK);
            scores[count] = value.f64;
        }
        count++;
    }
    return count;
}

static inline bool has_record(struct world *self, unsigned collection, uint64_t id, uint64_t salt)
{
    struct asked asked = with_ids("get", collection, &id, 1);
    sk_put_bool(key(&asked, "with_vector"), true);
    struct sk_reply reply = ask_ok(self, asked);
    struct sk_list records;
    struct sk_span vector;
    struct sk_value value;
    struct sk_diag d = {0};
    assert_true(sk_map_member_list(reply.map, "records", &records));
    assert_int_equal(records.count, 1);
    struct sk_reader from = sk_reader_of(records.members);
    struct sk_span record;
    assert_int_equal(sk_read_raw(&from, 8, &record, &d), SK_ERR_OK);
    if (!sk_map_member(record, "vector", &vector))
        return false;
    float wanted[DIM];
    vector_of(id, salt, wanted);
    from = sk_reader_of(vector);
    assert_int_equal(sk_read(&from, &value, &d), SK_ERR_OK);
    return value.kind == SK_VALUE_BIN && value.span.size == sizeof wanted &&
           memcmp(value.span.bytes, wanted, sizeof wanted) == 0;
}

static inline void check(struct world *self)
{
    struct sk_diag d = {0};
    if (sk_worker_check(self->worker, &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
}

/* A text about the first index, from describe's source. */
static inline void index_text_of(struct world *self, unsigned collection, const char *name, char *out,
                                 size_t size)
{
    struct asked asked = begin("shard_stats", collection);
    struct sk_reply reply = {0};
    struct sk_map_collection *c = &self->map.collections[collection];
    sk_put_count_at(&asked.frame, asked.at, asked.count);
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = SK_ROLE_LINK,
                                    .request = ++self->request_next,
                                    .deadline_ms = 1000};
    memcpy(header.collection, c->schema.uuid, SK_UUID_BYTES);
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, asked.frame.bytes, asked.frame.size);
    sk_worker_on_message(self->worker, SK_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    sk_buffer_deinit(&asked.frame);
    assert_true(reply_of(self, header.request, &reply));
    struct sk_list indexes;
    struct sk_span text;
    assert_true(sk_map_member_list(reply.map, "indexes", &indexes));
    assert_true(sk_map_member_text(indexes.members, name, &text));
    snprintf(out, size, "%.*s", (int)text.size, (const char *)text.bytes);
}

static inline void state_of(struct world *self, unsigned collection, char state[16])
{
    index_text_of(self, collection, "state", state, 16);
}

static inline void wait_indexed(struct world *self, unsigned collection)
{
    struct asked asked = begin("wait", collection);
    asked.deadline_ms = 600000;
    sk_put_text(key(&asked, "for"), "indexed");
    ask_ok(self, asked);
}

#endif
