#include "common/base/utf8.h"
#include "proto/codec_internal.h"

#include <math.h>

struct field_info {
    const char *name;
    const char *member;
    const char *aliases; /* separated by blanks */
    size_t name_size;
    enum sk_field_kind kind;
    uint64_t limit;
    size_t offset; /* in struct sk_request */
};

static const struct field_info fields[] = {
#define SK_FIELD(member, name, kind, limit, aliases, help)                                         \
    {name,                                                                                         \
     #member,                                                                                      \
     aliases,                                                                                      \
     sizeof(name) - 1,                                                                             \
     SK_KIND_##kind,                                                                               \
     limit,                                                                                        \
     offsetof(struct sk_request, member)},
#include "proto/messages.def"
#undef SK_FIELD
};

struct op_info {
    const char *name;
    enum sk_role role;
    const char *required; /* member names separated by blanks */
    const char *optional;
};

static const struct op_info ops[] = {
    {"", SK_ROLE_LINK, "", ""},
#define SK_OP(NAME, name, role, required, optional, reply, help)                                   \
    {name, SK_ROLE_##role, required, optional},
#include "proto/messages.def"
#undef SK_OP
};

/* ---- names ---- */

const char *sk_op_name(enum sk_op op)
{
    return op < SK_OPS_END ? ops[op].name : "";
}

enum sk_role sk_op_role(enum sk_op op)
{
    return op < SK_OPS_END ? ops[op].role : SK_ROLE_LINK;
}

bool sk_op_is_write(enum sk_op op)
{
    return op == SK_OP_UPSERT || op == SK_OP_DELETE || op == SK_OP_SET_PAYLOAD;
}

/* True when word is one of the blank-separated words of list. */
static bool has_word(const char *list, const char *word, size_t size)
{
    while (*list != '\0') {
        size_t length = strcspn(list, " ");
        if (length == size && memcmp(list, word, size) == 0)
            return true;
        list += length;
        list += *list == ' ';
    }
    return false;
}

/* Fields of each operation, a bit each: the lists of names cost more to search than all the rest of
 * a request's decoding. */
static struct {
    uint64_t required, taken;
} masks[SK_OPS_END];

_Static_assert(SK_FIELD_COUNT <= 64, "a bit for each field");

__attribute__((constructor)) static void make_masks(void)
{
    for (size_t op = 0; op < SK_OPS_END; op++) {
        for (size_t i = 0; i < SK_FIELD_COUNT; i++) {
            size_t size = strlen(fields[i].member);
            if (has_word(ops[op].required, fields[i].member, size))
                masks[op].required |= UINT64_C(1) << i;
            if (has_word(ops[op].optional, fields[i].member, size))
                masks[op].taken |= UINT64_C(1) << i;
        }
        masks[op].taken |= masks[op].required;
    }
}

static bool op_takes(enum sk_op op, size_t field)
{
    return (masks[op].taken >> field & 1) != 0;
}

/* The field of op with this wire name or alias; SK_FIELD_COUNT when there is none. */
static size_t find_field(enum sk_op op, struct sk_span key)
{
    for (uint64_t left = masks[op].taken; left != 0; left &= left - 1) {
        size_t i = (size_t)__builtin_ctzll(left);
        if (key.size == fields[i].name_size && memcmp(key.bytes, fields[i].name, key.size) == 0)
            return i;
        if (fields[i].aliases[0] != '\0' &&
            has_word(fields[i].aliases, (const char *)key.bytes, key.size))
            return i;
    }
    return SK_FIELD_COUNT;
}

static enum sk_err unknown_field(enum sk_op op, struct sk_span key, struct sk_diag *d)
{
    const char *candidates[SK_FIELD_COUNT + 3] = {"id", "deadline_ms", "v"};
    size_t count = 3;
    char shown[SK_DIAG_FIELD_BYTES];
    for (size_t i = 0; i < SK_FIELD_COUNT; i++)
        if (op_takes(op, i))
            candidates[count++] = fields[i].name;
    const char *closest = sk_closest(key, candidates, count);
    (void)snprintf(shown, sizeof shown, "%.*s", (int)(key.size > 64 ? 64 : key.size),
                   sk_utf8_valid(key) ? (const char *)key.bytes : "?");
    if (closest != NULL)
        return sk_fail_field(d, SK_ERR_UNKNOWN_FIELD, shown,
                             "%s has no field '%s'; the closest name is '%s'", ops[op].name, shown,
                             closest);
    return sk_fail_field(d, SK_ERR_UNKNOWN_FIELD, shown, "%s has no field '%s'", ops[op].name,
                         shown);
}

/* ---- one field ---- */

static enum sk_err want(const struct field_info *field, const struct sk_value *got,
                        const char *wanted, struct sk_diag *d)
{
    return sk_fail_field(d, SK_ERR_INVALID, field->name, "%s is %s, want %s", field->name,
                         sk_value_kind_name(got->kind), wanted);
}

static enum sk_err read_list(struct sk_reader *from, const struct field_info *field, bool is_ids,
                             struct sk_list *out, struct sk_diag *d)
{
    struct sk_value head;
    enum sk_err err = sk_read(from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_ARRAY)
        return want(field, &head, "an array", d);
    if (head.count > field->limit)
        return sk_fail_field(d, SK_ERR_TOO_LARGE, field->name,
                             "%s has %u members, want at most %llu", field->name, head.count,
                             (unsigned long long)field->limit);
    const uint8_t *begin = from->at;
    for (uint32_t i = 0; i < head.count; i++) {
        struct sk_id id;
        err = is_ids ? sk_read_id(from, &id, d) : sk_skip(from, SK_REQUEST_DEPTH_MAX, d);
        if (err != SK_ERR_OK)
            return sk_wrap(d, err, "%s row %u", field->name, i);
    }
    out->is_present = true;
    out->count = head.count;
    out->members = sk_span_of(begin, (size_t)(from->at - begin));
    return SK_ERR_OK;
}

static enum sk_err read_selector(struct sk_reader *from, const struct field_info *field,
                                 struct sk_selector *out, struct sk_diag *d)
{
    struct sk_reader ahead = *from;
    struct sk_value value;
    enum sk_err err = sk_read(&ahead, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_BOOL) {
        out->is_wanted = value.boolean;
        *from = ahead;
        return SK_ERR_OK;
    }
    if (value.kind != SK_VALUE_ARRAY)
        return want(field, &value, "a bool or an array of payload keys", d);
    out->is_wanted = true;
    err = read_list(from, field, false, &out->names, d);
    struct sk_reader members = sk_reader_of(out->names.members);
    while (err == SK_ERR_OK && sk_reader_left(&members) > 0) {
        err = sk_read(&members, &value, d);
        if (err == SK_ERR_OK && value.kind != SK_VALUE_TEXT)
            err = want(field, &value, "payload keys as text", d);
    }
    return err;
}

static enum sk_err read_text(const struct field_info *field, const struct sk_value *value,
                             struct sk_span *out, struct sk_diag *d)
{
    if (value->kind != SK_VALUE_TEXT)
        return want(field, value, "text", d);
    if (field->kind == SK_KIND_name)
        return (*out = value->span, sk_name_check(value->span, field->name, d));
    if (value->span.size > field->limit)
        return sk_fail_field(d, SK_ERR_TOO_LARGE, field->name,
                             "%s has %zu bytes, want at most %llu", field->name, value->span.size,
                             (unsigned long long)field->limit);
    if (!sk_utf8_valid(value->span))
        return sk_fail_field(d, SK_ERR_INVALID, field->name, "%s is not valid UTF-8", field->name);
    *out = value->span;
    return SK_ERR_OK;
}

static enum sk_err read_number(const struct field_info *field, const struct sk_value *value,
                               void *out, struct sk_diag *d)
{
    double number;
    if (field->kind == SK_KIND_number) {
        if (!sk_value_number(value, &number))
            return want(field, value, "a number", d);
        if (!isfinite(number))
            return sk_fail_field(d, SK_ERR_INVALID, field->name, "%s is not finite", field->name);
        memcpy(out, &number, sizeof number);
        return SK_ERR_OK;
    }
    if (value->kind != SK_VALUE_UNSIGNED)
        return want(field, value, "an unsigned integer", d);
    if (field->kind == SK_KIND_u64) {
        memcpy(out, &value->u64, sizeof value->u64);
        return SK_ERR_OK;
    }
    if (value->u64 == 0 || value->u64 > field->limit)
        return sk_fail_field(d, value->u64 == 0 ? SK_ERR_INVALID : SK_ERR_TOO_LARGE, field->name,
                             "%s is %llu, want 1 to %llu", field->name,
                             (unsigned long long)value->u64, (unsigned long long)field->limit);
    uint32_t narrow = (uint32_t)value->u64;
    memcpy(out, &narrow, sizeof narrow);
    return SK_ERR_OK;
}

static enum sk_err read_field(struct sk_reader *from, const struct field_info *field, void *out,
                              struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err;
    switch (field->kind) {
    case SK_KIND_ids:
    case SK_KIND_list:
        return read_list(from, field, field->kind == SK_KIND_ids, out, d);
    case SK_KIND_flag_or_names:
        return read_selector(from, field, out, d);
    case SK_KIND_id:
        return sk_read_id(from, out, d);
    case SK_KIND_raw:
        err = sk_read_raw(from, SK_REQUEST_DEPTH_MAX, out, d);
        if (err == SK_ERR_OK && ((struct sk_span *)out)->size > field->limit + 16)
            return sk_fail_field(d, SK_ERR_TOO_LARGE, field->name,
                                 "%s has %zu bytes, want at most %llu", field->name,
                                 ((struct sk_span *)out)->size, (unsigned long long)field->limit);
        return err;
    default:
        break;
    }
    err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (field->kind == SK_KIND_flag) {
        if (value.kind != SK_VALUE_BOOL)
            return want(field, &value, "a bool", d);
        *(bool *)out = value.boolean;
        return SK_ERR_OK;
    }
    if (field->kind == SK_KIND_name || field->kind == SK_KIND_text)
        return read_text(field, &value, out, d);
    return read_number(field, &value, out, d);
}

/* ---- whole requests ---- */

static enum sk_err check_required(const struct sk_request *request, struct sk_diag *d)
{
    uint64_t missing = masks[request->op].required & ~request->present;
    if (missing != 0) {
        const char *name = fields[__builtin_ctzll(missing)].name;
        return sk_fail_field(d, SK_ERR_INVALID, name, "%s wants a field '%s'",
                             ops[request->op].name, name);
    }
    return SK_ERR_OK;
}

/* field: the one to name, the first of names. */
static enum sk_err exactly_one(const struct sk_request *request, uint64_t mask, const char *field,
                               const char *names, struct sk_diag *d)
{
    if (__builtin_popcountll(request->present & mask) == 1)
        return SK_ERR_OK;
    return sk_fail_field(d, SK_ERR_INVALID, field, "%s wants exactly one of %s",
                         ops[request->op].name, names);
}

#define BIT(member) (UINT64_C(1) << SK_FIELD_##member)

static enum sk_err check_search(const struct sk_request *request, struct sk_diag *d)
{
    if (__builtin_popcountll(request->present & (BIT(ef) | BIT(nprobe) | BIT(recall))) > 1)
        return sk_fail_field(d, SK_ERR_INVALID, "recall",
                             "search takes one of ef, nprobe and recall, not several");
    if (sk_request_has(request, SK_FIELD_recall) &&
        !(request->recall >= SK_RECALL_MIN && request->recall <= SK_RECALL_MAX))
        return sk_fail_field(d, SK_ERR_INVALID, "recall",
                             "recall is %g, want 0.5 to 0.999; for all of them there is exact",
                             request->recall);
    return exactly_one(request, BIT(vector) | BIT(queries) | BIT(like), "vector",
                       "vector, vectors, like", d);
}

static enum sk_err check_together(const struct sk_request *request, struct sk_diag *d)
{
    switch (request->op) {
    case SK_OP_UPSERT:
        if ((request->present & BIT(records)) != 0) {
            if ((request->present & (BIT(ids) | BIT(vectors) | BIT(payloads) | BIT(ttl_s))) != 0)
                return sk_fail_field(d, SK_ERR_INVALID, "records",
                                     "upsert takes rows (records) or columns (ids, vectors, "
                                     "payloads, ttl_s), not both");
            return SK_ERR_OK;
        }
        if ((request->present & BIT(ids)) == 0)
            return sk_fail_field(d, SK_ERR_INVALID, "ids",
                                 "upsert wants ids and vectors, or records");
        if ((request->present & BIT(payloads)) != 0 &&
            request->payloads.count != request->ids.count)
            return sk_fail_field(d, SK_ERR_INVALID, "payloads", "%u payloads for %u ids",
                                 request->payloads.count, request->ids.count);
        return SK_ERR_OK;
    case SK_OP_DELETE:
    case SK_OP_SET_PAYLOAD:
        return exactly_one(request, BIT(ids) | BIT(filter), "ids", "ids, filter", d);
    case SK_OP_SEARCH:
        return check_search(request, d);
    default:
        return SK_ERR_OK;
    }
}

static enum sk_err check_words(struct sk_request *request, struct sk_diag *d)
{
    if (request->op == SK_OP_SET_PAYLOAD) {
        if (!sk_request_has(request, SK_FIELD_mode))
            request->mode = sk_span_text("merge");
        else if (!sk_span_is(request->mode, "merge") && !sk_span_is(request->mode, "replace"))
            return sk_fail_field(d, SK_ERR_INVALID, "mode", "mode wants merge or replace");
    }
    if (sk_request_has(request, SK_FIELD_wait_for) && !sk_span_is(request->wait_for, "indexed"))
        return sk_fail_field(d, SK_ERR_INVALID, "for", "for wants indexed");
    return SK_ERR_OK;
}

enum sk_err sk_request_decode(struct sk_request *out, struct sk_span frame, struct sk_diag *d)
{
    struct sk_envelope envelope;
    struct sk_reader from;
    uint32_t count = 0;
    uint64_t seen = 0;
    memset(out, 0, sizeof *out);
    enum sk_err err = sk_envelope_decode(&envelope, frame, d);
    if (err != SK_ERR_OK)
        return err;
    out->op = envelope.op;
    out->id = envelope.id;
    out->deadline_ms = envelope.deadline_ms;
    out->limit = SK_LIMIT_DEFAULT;
    out->ef = SK_EF_DEFAULT;
    err = sk_codec_read_head(&from, frame, &count, d);
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(&from, &key, d);
        if (err != SK_ERR_OK)
            break;
        size_t field = find_field(out->op, key);
        if (field == SK_FIELD_COUNT) {
            unsigned bit = sk_codec_envelope_bit(key);
            if (bit == 0 || bit == ENVELOPE_COLLECTION)
                return unknown_field(out->op, key, d);
            err = sk_skip(&from, SK_REQUEST_DEPTH_MAX, d);
            continue;
        }
        if ((seen >> field & 1) != 0)
            return sk_fail_field(d, SK_ERR_INVALID, fields[field].name,
                                 "%s is given twice (under two of its names, or repeated)",
                                 fields[field].name);
        seen |= UINT64_C(1) << field;
        if (sk_reader_left(&from) > 0 && *from.at == 0xC0) {
            from.at++; /* nil: as if it were not there */
            continue;
        }
        err = read_field(&from, &fields[field], (uint8_t *)out + fields[field].offset, d);
        if (err != SK_ERR_OK)
            return sk_codec_name_field(d, err, sk_span_text(fields[field].name));
        out->present |= UINT64_C(1) << field;
    }
    if (err == SK_ERR_OK)
        err = check_required(out, d);
    if (err == SK_ERR_OK)
        err = check_together(out, d);
    if (err == SK_ERR_OK)
        err = check_words(out, d);
    return err;
}

static void put_field(struct sk_buffer *to, const struct field_info *field, const void *at)
{
    sk_put_text(to, field->name);
    switch (field->kind) {
    case SK_KIND_name:
    case SK_KIND_text:
        sk_put_text_of(to, *(const struct sk_span *)at);
        break;
    case SK_KIND_u32:
        sk_put_u64(to, *(const uint32_t *)at);
        break;
    case SK_KIND_u64:
        sk_put_u64(to, *(const uint64_t *)at);
        break;
    case SK_KIND_number:
        sk_put_f64(to, *(const double *)at);
        break;
    case SK_KIND_flag:
        sk_put_bool(to, *(const bool *)at);
        break;
    case SK_KIND_flag_or_names: {
        const struct sk_selector *selector = at;
        if (!selector->names.is_present) {
            sk_put_bool(to, selector->is_wanted);
        } else {
            sk_put_array(to, selector->names.count);
            sk_put_raw(to, selector->names.members);
        }
        break;
    }
    case SK_KIND_id:
        sk_put_id(to, at);
        break;
    case SK_KIND_ids:
    case SK_KIND_list: {
        const struct sk_list *list = at;
        sk_put_array(to, list->count);
        sk_put_raw(to, list->members);
        break;
    }
    case SK_KIND_raw:
        sk_put_raw(to, *(const struct sk_span *)at);
        break;
    }
}

void sk_request_encode(struct sk_buffer *to, const struct sk_request *request)
{
    size_t at = sk_put_map_open(to);
    uint32_t count = 4;
    sk_put_text(to, "v");
    sk_put_u64(to, SK_PROTOCOL_VERSION);
    sk_put_text(to, "op");
    sk_put_text(to, sk_op_name(request->op));
    sk_put_text(to, "id");
    sk_put_request_id(to, &request->id);
    sk_put_text(to, "deadline_ms");
    sk_put_u64(to, request->deadline_ms);
    for (size_t i = 0; i < SK_FIELD_COUNT; i++) {
        if ((request->present >> i & 1) == 0)
            continue;
        put_field(to, &fields[i], (const uint8_t *)request + fields[i].offset);
        count++;
    }
    sk_put_count_at(to, at, count);
}
