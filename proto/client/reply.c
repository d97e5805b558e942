/* Replies: the frame is kept as it came; what is asked for is read out of it on demand. The node is
 * not trusted: every read is bounded, and a reply of another shape is an error. */
#include "proto/client/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

struct skerry_reply {
    bool has_message;
    zmq_msg_t message;
    struct skerry_error error; /* where has_message is false */
};

struct skerry_reply *sk_reply_new_error(const struct skerry_error *error)
{
    struct skerry_reply *self = calloc(1, sizeof *self);
    if (self != NULL)
        self->error = *error;
    return self;
}

struct skerry_reply *sk_reply_new_message(void *zmq_message)
{
    struct skerry_reply *self = calloc(1, sizeof *self);
    if (self != NULL) {
        zmq_msg_init(&self->message);
        zmq_msg_move(&self->message, zmq_message);
        self->has_message = true;
    }
    zmq_msg_close(zmq_message);
    return self;
}

void skerry_reply_free(struct skerry_reply **self_pointer)
{
    struct skerry_reply *self = self_pointer == NULL ? NULL : *self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    if (self->has_message)
        zmq_msg_close(&self->message);
    free(self);
}

static struct sk_span frame_of(const struct skerry_reply *self)
{
    if (!self->has_message)
        return (struct sk_span){0};
    zmq_msg_t *message = (zmq_msg_t *)(uintptr_t)&self->message; /* reading needs no write */
    return sk_span_of(zmq_msg_data(message), zmq_msg_size(message));
}

struct skerry_bytes skerry_reply_bytes(const struct skerry_reply *self)
{
    struct sk_span frame = frame_of(self);
    return (struct skerry_bytes){frame.bytes, frame.size};
}

/* The value of a key of the map in frame. */
static bool find(struct sk_span map, const char *name, struct sk_span *out)
{
    struct sk_reader scan = {map.bytes, map.bytes + map.size};
    struct sk_value value;
    *out = (struct sk_span){0};
    if (map.bytes == NULL || !sk_scan_next(&scan, &value) || value.kind != SK_VALUE_MAP)
        return false;
    for (uint32_t i = 0, count = value.count; i < count; i++) {
        struct sk_value key;
        if (!sk_scan_next(&scan, &key) || key.kind != SK_VALUE_TEXT)
            return false;
        bool is_it = sk_span_is(key.span, name);
        if (!sk_scan_skip(&scan, is_it ? out : NULL))
            return false;
        if (is_it)
            return true;
    }
    return false;
}

static bool value_of(struct sk_span member, struct sk_value *out)
{
    struct sk_reader scan = {member.bytes, member.bytes + member.size};
    return member.bytes != NULL && sk_scan_next(&scan, out);
}

static bool find_value(struct sk_span map, const char *name, struct sk_value *out)
{
    struct sk_span member;
    return find(map, name, &member) && value_of(member, out);
}

bool sk_reply_request_id(struct sk_span frame, uint64_t *id)
{
    struct sk_value value;
    if (!find_value(frame, "id", &value) || value.kind != SK_VALUE_UNSIGNED)
        return false;
    *id = value.u64;
    return true;
}

struct sk_span sk_reply_member(const struct skerry_reply *self, const char *name)
{
    struct sk_span member;
    find(frame_of(self), name, &member);
    return member;
}

bool skerry_reply_u64(const struct skerry_reply *self, const char *name, uint64_t *out)
{
    struct sk_value value;
    *out = 0;
    if (!find_value(frame_of(self), name, &value) || value.kind != SK_VALUE_UNSIGNED)
        return false;
    *out = value.u64;
    return true;
}

static void copy_text(struct sk_span map, const char *name, char *out, size_t size)
{
    struct sk_value value;
    if (find_value(map, name, &value) && value.kind == SK_VALUE_TEXT)
        snprintf(out, size, "%.*s", (int)value.span.size, (const char *)value.span.bytes);
}

enum skerry_code skerry_reply_error(const struct skerry_reply *self, struct skerry_error *error)
{
    if (!self->has_message) {
        if (error != NULL)
            *error = self->error;
        return self->error.code;
    }
    struct sk_span frame = frame_of(self), details;
    struct sk_value ok, code, retriable;
    if (!find_value(frame, "ok", &ok) || ok.kind != SK_VALUE_BOOL)
        return sk_client_fail(error, SKERRY_VERSION,
                              "the reply is not one of this protocol: it has no member ok");
    if (ok.boolean)
        return SKERRY_OK;
    if (!find(frame, "error", &details) || !find_value(details, "code", &code) ||
        code.kind != SK_VALUE_UNSIGNED || code.u64 == 0 || code.u64 > UINT16_MAX)
        return sk_client_fail(error, SKERRY_VERSION,
                              "the reply is not one of this protocol: its error has no code");
    if (error != NULL) {
        *error = (struct skerry_error){.code = (enum skerry_code)code.u64};
        copy_text(details, "name", error->name, sizeof error->name);
        copy_text(details, "field", error->field, sizeof error->field);
        copy_text(details, "message", error->message, sizeof error->message);
        error->retriable = find_value(details, "retriable", &retriable) &&
                           retriable.kind == SK_VALUE_BOOL && retriable.boolean;
    }
    return (enum skerry_code)code.u64;
}

/* ---- Hits and records ---- */

static bool find_bool(struct sk_span map, const char *name)
{
    struct sk_value value;
    return find_value(map, name, &value) && value.kind == SK_VALUE_BOOL && value.boolean;
}

static uint64_t find_u64(struct sk_span map, const char *name)
{
    struct sk_value value;
    return find_value(map, name, &value) && value.kind == SK_VALUE_UNSIGNED ? value.u64 : 0;
}

/* One hit or record: both are maps of id, payload, vector and, for hits, score. */
struct row {
    struct skerry_hit hit;
    struct sk_span id_text;
    bool has_id;
};

static struct skerry_bytes bytes_of(struct sk_span span)
{
    return (struct skerry_bytes){span.bytes, span.size};
}

static bool read_member(struct sk_reader *scan, struct sk_span key, struct row *row)
{
    struct sk_span span;
    struct sk_value value;
    if (!sk_scan_skip(scan, &span) || !value_of(span, &value))
        return false;
    if (sk_span_is(key, "id")) {
        row->has_id = true;
        row->hit.id.number = value.kind == SK_VALUE_UNSIGNED ? value.u64 : 0;
        if (value.kind == SK_VALUE_TEXT)
            row->id_text = value.span;
        return value.kind == SK_VALUE_UNSIGNED || value.kind == SK_VALUE_TEXT;
    }
    if (sk_span_is(key, "score")) {
        row->hit.score = value.kind == SK_VALUE_FLOAT      ? (float)value.f64
                         : value.kind == SK_VALUE_UNSIGNED ? (float)value.u64
                         : value.kind == SK_VALUE_NEGATIVE ? (float)value.i64
                                                           : 0;
        return value.kind == SK_VALUE_FLOAT || value.kind == SK_VALUE_UNSIGNED ||
               value.kind == SK_VALUE_NEGATIVE;
    }
    if (sk_span_is(key, "payload") && value.kind == SK_VALUE_MAP)
        row->hit.payload = bytes_of(span);
    if (sk_span_is(key, "vector") && value.kind == SK_VALUE_BIN)
        row->hit.vector = bytes_of(value.span);
    if (sk_span_is(key, "vector") && value.kind == SK_VALUE_MAP)
        row->hit.vector_map = bytes_of(span);
    return true;
}

static bool read_row(struct sk_reader *scan, struct row *row)
{
    struct sk_value value, key;
    *row = (struct row){0};
    if (!sk_scan_next(scan, &value))
        return false;
    if (value.kind == SK_VALUE_NIL)
        return true;
    if (value.kind != SK_VALUE_MAP)
        return false;
    for (uint32_t i = 0, count = value.count; i < count; i++)
        if (!sk_scan_next(scan, &key) || key.kind != SK_VALUE_TEXT ||
            !read_member(scan, key.span, row))
            return false;
    return row->has_id;
}

/* Text ids are not followed by a zero byte in the frame: they are copied into one block of their
 * own. A frame of n bytes holds at most n bytes of them and their zeros (each has a head byte). */
struct texts {
    char *bytes; /* owned, made for the first text */
    size_t used;
    size_t capacity;
};

static bool keep_text(struct texts *texts, struct row *row)
{
    if (row->id_text.bytes == NULL)
        return true;
    if (texts->bytes == NULL && (texts->bytes = malloc(texts->capacity)) == NULL)
        return false;
    char *at = texts->bytes + texts->used;
    memcpy(at, row->id_text.bytes, row->id_text.size);
    at[row->id_text.size] = '\0';
    texts->used += row->id_text.size + 1;
    row->hit.id.text = at;
    return true;
}

static enum skerry_code bad_shape(struct skerry_error *error, const char *name)
{
    return sk_client_fail(error, SKERRY_VERSION,
                          "the reply's member %s has not the shape of this "
                          "protocol",
                          name);
}

struct owned_hits {
    struct skerry_hits hits; /* first: what the caller holds */
    struct skerry_reply *reply;
    struct skerry_hit *rows;
    size_t *starts;
    struct texts texts;
};

/* One list of hits at scan, appended. */
static enum skerry_code read_list(struct sk_reader *scan, uint32_t count, struct owned_hits *owned,
                                  size_t *used, struct skerry_error *error)
{
    for (uint32_t i = 0; i < count; i++) {
        struct row row;
        if (!read_row(scan, &row) || !row.has_id)
            return bad_shape(error, "hits");
        if (!keep_text(&owned->texts, &row))
            return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the hits");
        owned->rows[(*used)++] = row.hit;
    }
    return SKERRY_OK;
}

/* How many hits there are in all: hits is a list of maps (one query) or a list of lists. */
static bool count_hits(struct sk_reader scan, uint32_t outer_count, bool *is_many, size_t *count)
{
    struct sk_reader ahead = scan;
    struct sk_value inner;
    *is_many = outer_count > 0 && sk_scan_next(&ahead, &inner) && inner.kind == SK_VALUE_ARRAY;
    *count = *is_many ? 0 : outer_count;
    for (uint32_t q = 0; *is_many && q < outer_count; q++) {
        ahead = scan;
        if (!sk_scan_next(&ahead, &inner) || inner.kind != SK_VALUE_ARRAY ||
            !sk_scan_skip(&scan, NULL))
            return false;
        *count += inner.count;
    }
    return true;
}

static enum skerry_code read_hits(struct sk_span hits, struct owned_hits *owned,
                                  struct skerry_error *error)
{
    struct sk_reader scan = {hits.bytes, hits.bytes + hits.size};
    struct sk_value outer, inner;
    bool is_many = false;
    size_t used = 0, count = 0;
    if (!sk_scan_next(&scan, &outer) || outer.kind != SK_VALUE_ARRAY ||
        !count_hits(scan, outer.count, &is_many, &count))
        return bad_shape(error, "hits");
    size_t query_count = is_many ? outer.count : 1;
    owned->texts.capacity = hits.size + 1;
    owned->starts = calloc(query_count + 1, sizeof *owned->starts);
    owned->rows = malloc((count + 1) * sizeof *owned->rows);
    if (owned->starts == NULL || owned->rows == NULL)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the hits");
    enum skerry_code code = SKERRY_OK;
    if (!is_many)
        code = read_list(&scan, outer.count, owned, &used, error);
    for (size_t q = 0; code == SKERRY_OK && is_many && q < query_count; q++) {
        if (!sk_scan_next(&scan, &inner) || inner.kind != SK_VALUE_ARRAY)
            return bad_shape(error, "hits");
        owned->starts[q] = used;
        code = read_list(&scan, inner.count, owned, &used, error);
    }
    owned->starts[query_count] = used;
    owned->hits.query_count = query_count;
    owned->hits.starts = owned->starts;
    owned->hits.hits = owned->rows;
    return code;
}

void skerry_hits_free(struct skerry_hits **self_pointer)
{
    struct owned_hits *self =
        self_pointer == NULL ? NULL : (struct owned_hits *)(void *)*self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    skerry_reply_free(&self->reply);
    free(self->rows);
    free(self->starts);
    free(self->texts.bytes);
    free(self);
}

enum skerry_code skerry_reply_hits(struct skerry_reply **reply, struct skerry_hits **out,
                                   struct skerry_error *error)
{
    *out = NULL;
    enum skerry_code code = skerry_reply_error(*reply, error);
    if (code != SKERRY_OK)
        return code;
    struct sk_span frame = frame_of(*reply), hits, shards;
    if (!find(frame, "hits", &hits))
        return bad_shape(error, "hits");
    struct owned_hits *owned = calloc(1, sizeof *owned);
    if (owned == NULL)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the hits");
    code = read_hits(hits, owned, error);
    if (code != SKERRY_OK) {
        struct skerry_hits *unfinished = &owned->hits;
        skerry_hits_free(&unfinished);
        return code;
    }
    owned->hits.exact = find_bool(frame, "exact");
    owned->hits.more = find_bool(frame, "more");
    owned->hits.took_us = find_u64(frame, "took_us");
    if (find(frame, "shards", &shards)) {
        owned->hits.shards_asked = (uint32_t)find_u64(shards, "asked");
        owned->hits.shards_answered = (uint32_t)find_u64(shards, "answered");
    }
    copy_text(frame, "source", owned->hits.source, sizeof owned->hits.source);
    copy_text(frame, "warning", owned->hits.warning, sizeof owned->hits.warning);
    owned->reply = *reply;
    *reply = NULL;
    *out = &owned->hits;
    return SKERRY_OK;
}

struct owned_records {
    struct skerry_records records; /* first: what the caller holds */
    struct skerry_reply *reply;
    struct skerry_record *rows;
    struct texts texts;
};

void skerry_records_free(struct skerry_records **self_pointer)
{
    struct owned_records *self =
        self_pointer == NULL ? NULL : (struct owned_records *)(void *)*self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    skerry_reply_free(&self->reply);
    free(self->rows);
    free(self->texts.bytes);
    free(self);
}

static enum skerry_code read_records(struct sk_span span, struct owned_records *owned,
                                     struct skerry_error *error)
{
    struct sk_reader scan = {span.bytes, span.bytes + span.size};
    struct sk_value list;
    if (!sk_scan_next(&scan, &list) || list.kind != SK_VALUE_ARRAY)
        return bad_shape(error, "records");
    owned->texts.capacity = span.size + 1;
    owned->rows = calloc((size_t)list.count + 1, sizeof *owned->rows);
    if (owned->rows == NULL)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the records");
    for (uint32_t i = 0; i < list.count; i++) {
        struct row row;
        if (!read_row(&scan, &row))
            return bad_shape(error, "records");
        if (!keep_text(&owned->texts, &row))
            return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the records");
        owned->rows[i] = (struct skerry_record){.is_found = row.has_id,
                                                .id = row.hit.id,
                                                .payload = row.hit.payload,
                                                .vector = row.hit.vector,
                                                .vector_map = row.hit.vector_map};
    }
    owned->records.count = list.count;
    owned->records.records = owned->rows;
    return SKERRY_OK;
}

enum skerry_code skerry_reply_records(struct skerry_reply **reply, struct skerry_records **out,
                                      struct skerry_error *error)
{
    *out = NULL;
    enum skerry_code code = skerry_reply_error(*reply, error);
    if (code != SKERRY_OK)
        return code;
    struct sk_span frame = frame_of(*reply), records, cursor;
    if (!find(frame, "records", &records))
        return bad_shape(error, "records");
    struct owned_records *owned = calloc(1, sizeof *owned);
    if (owned == NULL)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the records");
    code = read_records(records, owned, error);
    if (code != SKERRY_OK) {
        struct skerry_records *unfinished = &owned->records;
        skerry_records_free(&unfinished);
        return code;
    }
    struct sk_value value;
    if (find(frame, "cursor", &cursor) && value_of(cursor, &value) && value.kind != SK_VALUE_NIL)
        owned->records.cursor = bytes_of(cursor);
    owned->reply = *reply;
    *reply = NULL;
    *out = &owned->records;
    return SKERRY_OK;
}
