/* What comes back from several shards, as one answer. Replies are well formed msgpack maps with ok true
 * (links.c has looked); all else about them is checked here. */
#include "actors/router/internal.h"

#include <string.h>

/* Reads answer only when every shard did. True: answered with the error. */
static bool answer_if_failed(struct sk_router *self, struct request *request)
{
    struct part *worst = request_worst(request);
    if (worst == NULL)
        return false;
    answer_part(self, request, worst);
    return true;
}

static void put_warning(struct sk_reply_writer *reply, const struct request *request)
{
    struct sk_span warning;
    for (uint32_t p = 0; p < request->part_count; p++)
        if (sk_map_member_text(sk_buffer_span(&request->parts[p].body), "warning", &warning)) {
            sk_reply_key(reply, "warning");
            sk_put_text_of(reply->to, warning);
            return;
        }
}

/* ---- numbers that add up ---- */

/* NULL: every part had that member; else the first that had not. */
static const struct part *sum_of(const struct request *request, const char *name, uint64_t *sum)
{
    *sum = 0;
    for (uint32_t p = 0; p < request->part_count; p++) {
        uint64_t value;
        if (!sk_map_member_u64(sk_buffer_span(&request->parts[p].body), name, &value))
            return &request->parts[p];
        *sum += value;
    }
    return NULL;
}

static void answer_sums(struct sk_router *self, struct request *request, const char *const *names,
                        unsigned count, bool has_warning)
{
    uint64_t sums[2];
    SK_CHECK(count <= SK_COUNT_OF(sums));
    for (unsigned n = 0; n < count; n++) {
        const struct part *bad = sum_of(request, names[n], &sums[n]);
        if (bad != NULL) {
            answer_malformed(self, request, bad);
            return;
        }
    }
    struct sk_reply_writer reply;
    reply_begin(self, request, &reply);
    for (unsigned n = 0; n < count; n++) {
        sk_reply_key(&reply, names[n]);
        sk_put_u64(reply.to, sums[n]);
    }
    if (has_warning)
        put_warning(&reply, request);
    answer_reply(self, request, &reply);
}

void finish_count(struct sk_router *self, struct request *request)
{
    static const char *const names[] = {"count"};
    if (!answer_if_failed(self, request))
        answer_sums(self, request, names, 1, true);
}

void finish_sums(struct sk_router *self, struct request *request)
{
    static const char *const verify[] = {"checked", "mended"};
    static const char *const compact[] = {"bytes_before", "bytes_after"};
    static const char *const snapshot[] = {"bytes"};
    if (answer_if_failed(self, request))
        return;
    if (request->op == SK_OP_VERIFY)
        answer_sums(self, request, verify, 2, true);
    else if (request->op == SK_OP_COMPACT)
        answer_sums(self, request, compact, 2, true);
    else
        answer_sums(self, request, snapshot, 1, true);
}

void finish_all_ok(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    if (answer_if_failed(self, request))
        return;
    reply_begin(self, request, &reply);
    answer_reply(self, request, &reply);
}

/* ---- writes ---- */

static const char *outcome_name(enum sk_op op)
{
    return op == SK_OP_UPSERT ? "upserted" : op == SK_OP_DELETE ? "deleted" : "updated";
}

enum outcome { APPLIED, FAILED, UNKNOWN };

static enum outcome outcome_of(const struct part *part)
{
    if (part->code == SK_ERR_OK)
        return APPLIED;
    return part->fault != FAULT_NONE && part->was_sent ? UNKNOWN : FAILED;
}

static uint32_t put_shards(struct sk_buffer *to, const struct request *request, const char *name,
                           enum outcome outcome)
{
    sk_put_text(to, name);
    size_t at = sk_put_array_open(to);
    uint32_t count = 0;
    for (uint32_t p = 0; p < request->part_count; p++)
        if (outcome_of(&request->parts[p]) == outcome) {
            sk_put_u64(to, request->parts[p].shard);
            count++;
        }
    sk_put_count_at(to, at, count);
    return count;
}

static unsigned list_shards(char *text, size_t size, const struct request *request,
                            enum outcome outcome)
{
    unsigned count = 0;
    size_t at = 0;
    text[0] = '\0';
    for (uint32_t p = 0; p < request->part_count; p++)
        if (outcome_of(&request->parts[p]) == outcome) {
            if (at + 8 < size)
                at += (size_t)snprintf(text + at, size - at, "%s%u", count != 0 ? ", " : "",
                                       request->parts[p].shard);
            count++;
        }
    return count;
}

/* Some shards wrote and some did not (or nobody knows): the error lists which. */
static void answer_divided(struct sk_router *self, struct request *request,
                           const struct part *worst)
{
    struct sk_diag why, d = {0};
    char applied[96], failed[96], unknown[96];
    part_diag(request, worst, &why);
    unsigned applied_count = list_shards(applied, sizeof applied, request, APPLIED);
    unsigned failed_count = list_shards(failed, sizeof failed, request, FAILED);
    unsigned unknown_count = list_shards(unknown, sizeof unknown, request, UNKNOWN);
    enum sk_err rc = sk_fail(
        &d, worst->code, "%s%s%s%s%s%s; shard %u: %.160s",
        applied_count != 0 ? "applied in shards " : "applied in none", applied,
        failed_count != 0 ? "; not in shards " : "", failed,
        unknown_count != 0 ? "; outcome unknown in shards " : "", unknown, worst->shard, why.text);
    memcpy(d.field, why.field, sizeof d.field);
    struct sk_buffer *to = &self->encoded;
    uint64_t sum = 0;
    for (uint32_t p = 0; p < request->part_count; p++) {
        uint64_t value = 0;
        if (request->parts[p].code == SK_ERR_OK &&
            sk_map_member_u64(sk_buffer_span(&request->parts[p].body), outcome_name(request->op),
                              &value))
            sum += value;
    }
    sk_buffer_clear(to);
    put_shards(to, request, "shards_applied", APPLIED);
    put_shards(to, request, "shards_failed", FAILED);
    put_shards(to, request, "shards_unknown", UNKNOWN);
    sk_put_text(to, outcome_name(request->op));
    sk_put_u64(to, sum);
    if (self->reply.capacity > REPLY_KEPT_BYTES)
        sk_buffer_deinit(&self->reply);
    sk_buffer_clear(&self->reply);
    if (!to->is_broken)
        sk_reply_error_with(&self->reply, &request->id, rc, &d, 4, sk_buffer_span(to));
    if (to->is_broken || self->reply.is_broken)
        answer_error(self, request, rc, &d);
    else
        answer(self, request, rc, sk_buffer_span(&self->reply));
}

/* Which error to tell: an unknown outcome before a known one. */
static struct part *worst_of_write(struct request *request)
{
    for (uint32_t p = 0; p < request->part_count; p++)
        if (outcome_of(&request->parts[p]) == UNKNOWN)
            return &request->parts[p];
    return request_worst(request);
}

void finish_sum_write(struct sk_router *self, struct request *request)
{
    const char *const names[] = {outcome_name(request->op)};
    struct part *worst = worst_of_write(request);
    bool is_nowhere = true;
    for (uint32_t p = 0; p < request->part_count; p++)
        is_nowhere = is_nowhere && outcome_of(&request->parts[p]) == FAILED;
    if (worst == NULL)
        answer_sums(self, request, names, 1, true);
    else if (is_nowhere)
        answer_part(self, request, worst);
    else
        answer_divided(self, request, worst);
}

/* ---- get ---- */

struct members {
    struct sk_reader from;
    uint32_t left;
};

static bool members_begin(const struct part *part, const char *name, struct members *out)
{
    struct sk_list list;
    if (!sk_map_member_list(sk_buffer_span(&part->body), name, &list))
        return false;
    *out = (struct members){sk_reader_of(list.members), list.count};
    return true;
}

static bool members_next(struct members *self, struct sk_span *out)
{
    if (self->left == 0 || sk_read_raw(&self->from, SK_PACK_DEPTH_MAX, out, NULL) != SK_ERR_OK)
        return false;
    self->left--;
    return true;
}

static struct part *part_of_shard(struct request *request, uint32_t shard)
{
    for (uint32_t p = 0; p < request->part_count; p++)
        if (request->parts[p].shard == shard)
            return &request->parts[p];
    return NULL;
}

void finish_get(struct sk_router *self, struct request *request)
{
    struct members members[SK_SHARDS_MAX];
    struct sk_reader ids = sk_reader_of(request->decoded->ids.members);
    struct sk_reply_writer reply;
    struct sk_id id;
    if (answer_if_failed(self, request))
        return;
    for (uint32_t p = 0; p < request->part_count; p++)
        if (!members_begin(&request->parts[p], "records", &members[p])) {
            answer_malformed(self, request, &request->parts[p]);
            return;
        }
    reply_begin(self, request, &reply);
    sk_reply_key(&reply, "records");
    sk_put_array(reply.to, request->decoded->ids.count);
    while (sk_ids_next(&ids, &id)) {
        struct part *part = part_of_shard(request, sk_id_slot(&id) % request->shard_count);
        struct sk_span record;
        SK_CHECK(part != NULL); /* planned from the same ids */
        if (!members_next(&members[part - request->parts], &record)) {
            answer_malformed(self, request, part);
            return;
        }
        sk_put_raw(reply.to, record);
    }
    answer_reply(self, request, &reply);
}

/* ---- scroll ---- */

struct page {
    struct members members;
    bool has_more; /* the shard has records beyond its page */
    bool has_head;
    struct sk_id id;
    struct sk_span record;
};

static bool page_next(struct page *self)
{
    struct sk_span packed;
    self->has_head = false;
    if (self->members.left == 0)
        return true;
    if (!members_next(&self->members, &self->record) ||
        !sk_map_member(self->record, "id", &packed))
        return false;
    struct sk_reader from = sk_reader_of(packed);
    self->has_head = sk_read_id(&from, &self->id, NULL) == SK_ERR_OK;
    return self->has_head;
}

static bool page_begin(struct page *self, const struct part *part)
{
    struct sk_span cursor;
    if (!members_begin(part, "records", &self->members) ||
        !sk_map_member(sk_buffer_span(&part->body), "cursor", &cursor) || !page_next(self))
        return false;
    self->has_more = cursor.bytes[0] != 0xC0;
    return !self->has_more || self->has_head; /* a page that goes on has a record */
}

/* The record with the smallest id; NULL: no shard has one here. *is_end: a shard that has more has shown
 * all it gave, and what comes next is not known. */
static struct page *page_of_smallest(struct page *pages, uint32_t count, bool *is_end)
{
    struct page *smallest = NULL;
    *is_end = false;
    for (uint32_t p = 0; p < count; p++) {
        if (!pages[p].has_head) {
            *is_end = *is_end || pages[p].has_more;
            continue;
        }
        if (smallest == NULL || sk_id_compare(&pages[p].id, &smallest->id) < 0)
            smallest = &pages[p];
    }
    return smallest;
}

void finish_scroll(struct sk_router *self, struct request *request)
{
    struct page pages[SK_SHARDS_MAX];
    struct sk_reply_writer reply;
    struct sk_id last = {0};
    uint32_t count = 0;
    bool is_end = false;
    if (answer_if_failed(self, request))
        return;
    for (uint32_t p = 0; p < request->part_count; p++)
        if (!page_begin(&pages[p], &request->parts[p])) {
            answer_malformed(self, request, &request->parts[p]);
            return;
        }
    reply_begin(self, request, &reply);
    sk_reply_key(&reply, "records");
    size_t at = sk_put_array_open(reply.to);
    struct page *page = page_of_smallest(pages, request->part_count, &is_end);
    while (page != NULL && !is_end && count < request->decoded->limit &&
           (count == 0 || reply.to->size + page->record.size < SK_FRAME_BYTES_MAX / 2)) {
        sk_put_raw(reply.to, page->record);
        last = page->id;
        count++;
        if (!page_next(page)) {
            answer_malformed(self, request, &request->parts[page - pages]);
            return;
        }
        page = page_of_smallest(pages, request->part_count, &is_end);
    }
    sk_put_count_at(reply.to, at, count);
    sk_reply_key(&reply, "cursor");
    if ((page != NULL || is_end) && count != 0)
        sk_put_id(reply.to, &last);
    else
        sk_put_nil(reply.to);
    put_warning(&reply, request);
    answer_reply(self, request, &reply);
}
