#include "actors/metadata-keeper/internal.h"

#include <stdlib.h>

/* ---- Curve keys ---- */

enum sk_err sk_public_key_check(struct sk_span text, struct sk_diag *d)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 ".-:+=^!/*?&<>()[]{}@%$#";
    if (text.size != SK_Z85_KEY_BYTES - 1)
        return sk_fail_field(d, SK_ERR_INVALID, "public_key",
                             "public_key has %zu characters, want %d of Z85 (as in a .pub file)",
                             text.size, SK_Z85_KEY_BYTES - 1);
    uint64_t all = 0;
    for (size_t at = 0; at < text.size; at += 5) {
        uint64_t value = 0;
        for (size_t i = 0; i < 5; i++) {
            const char *digit = text.bytes[at + i] == '\0'
                                    ? NULL
                                    : memchr(digits, text.bytes[at + i], sizeof digits - 1);
            if (digit == NULL)
                return sk_fail_field(d, SK_ERR_INVALID, "public_key",
                                     "character %zu of public_key is not of Z85", at + i + 1);
            value = value * 85 + (uint64_t)(digit - digits);
        }
        if (value > UINT32_MAX)
            return sk_fail_field(d, SK_ERR_INVALID, "public_key",
                                 "characters %zu to %zu of public_key stand for no four bytes",
                                 at + 1, at + 5);
        all |= value;
    }
    if (all == 0)
        return sk_fail_field(d, SK_ERR_INVALID, "public_key", "public_key is all zero");
    return SK_ERR_OK;
}

const struct sk_map_key *sk_keeper_find_key(const struct sk_map *map, struct sk_span name)
{
    for (uint32_t i = 0; i < map->key_count; i++)
        if (sk_span_is(name, map->keys[i].name))
            return &map->keys[i];
    return NULL;
}

static enum sk_err plan_create_key(struct sk_keeper *self, const struct sk_request *request,
                                   struct commit *out, struct sk_diag *d)
{
    struct sk_map_key key = {0};
    enum sk_err err = sk_public_key_check(request->public_key, d);
    if (err == SK_ERR_OK)
        err = sk_role_parse(&key.role, request->role, d);
    if (err != SK_ERR_OK)
        return err;
    memcpy(key.name, request->name.bytes, request->name.size);
    memcpy(key.public_key, request->public_key.bytes, request->public_key.size);
    if (sk_keeper_find_key(&self->map, request->name) != NULL)
        return sk_fail_field(d, SK_ERR_EXISTS, "name", "there is a key '%s' already", key.name);
    for (uint32_t i = 0; i < self->map.key_count; i++)
        if (strcmp(self->map.keys[i].public_key, key.public_key) == 0)
            return sk_fail_field(d, SK_ERR_EXISTS, "public_key",
                                 "this public_key is let in already, as '%s'",
                                 self->map.keys[i].name);
    if (self->map.key_count >= SK_KEYS_MAX)
        return sk_fail_field(d, SK_ERR_TOO_LARGE, "name", "there are %d keys, the most there may be",
                             SK_KEYS_MAX);
    sk_keeper_put_key(out, &key);
    return SK_ERR_OK;
}

static enum sk_err plan_revoke_key(struct sk_keeper *self, const struct sk_request *request,
                                   struct commit *out, struct sk_diag *d)
{
    const struct sk_map_key *key = sk_keeper_find_key(&self->map, request->name);
    if (key != NULL) {
        sk_keeper_remove_key(out, key->name);
        out->is_release = true;
        return SK_ERR_OK;
    }
    const char *names[SK_KEYS_MAX];
    for (uint32_t i = 0; i < self->map.key_count; i++)
        names[i] = self->map.keys[i].name;
    const char *closest = sk_closest(request->name, names, self->map.key_count);
    return sk_fail_field(d, SK_ERR_NOT_FOUND, "name", "no key '%.*s'%s%s%s", (int)request->name.size,
                         (const char *)request->name.bytes,
                         closest != NULL ? "; the closest name is '" : "",
                         closest != NULL ? closest : "", closest != NULL ? "'" : "");
}

/* ---- collections ---- */

static void count_shards(const struct sk_keeper *self, uint32_t counts[SK_WORKERS_MAX])
{
    memset(counts, 0, SK_WORKERS_MAX * sizeof counts[0]);
    for (uint32_t i = 0; i < self->map.collection_count; i++)
        for (uint32_t s = 0; s < self->map.collections[i].schema.shard_count; s++)
            counts[self->map.collections[i].workers[s]]++;
}

static uint32_t least_loaded(const uint32_t counts[SK_WORKERS_MAX], uint32_t worker_count)
{
    uint32_t best = 0;
    for (uint32_t worker = 1; worker < worker_count; worker++)
        if (counts[worker] < counts[best])
            best = worker;
    return best;
}

static void make_uuid(struct sk_keeper *self, uint8_t uuid[SK_UUID_BYTES])
{
    uint64_t random[2] = {self->io->random(self->io->impl), self->io->random(self->io->impl)};
    memcpy(uuid, random, SK_UUID_BYTES);
    uuid[6] = (uint8_t)((uuid[6] & 0x0F) | 0x40); /* RFC 9562: version 4, random */
    uuid[8] = (uint8_t)((uuid[8] & 0x3F) | 0x80);
}

static enum sk_err plan_new_collection(struct sk_keeper *self, struct sk_map_collection *collection,
                                       struct commit *out, struct sk_diag *d)
{
    struct sk_schema *schema = &collection->schema;
    if (sk_map_find(&self->map, sk_span_text(schema->name)) != NULL)
        return sk_fail_field(d, SK_ERR_EXISTS, "collection", "there is a collection '%s' already",
                             schema->name);
    if (self->map.collection_count >= SK_COLLECTIONS_MAX)
        return sk_fail_field(d, SK_ERR_TOO_LARGE, "collection",
                             "there are %d collections, the most there may be", SK_COLLECTIONS_MAX);
    do
        make_uuid(self, schema->uuid);
    while (sk_map_find_uuid(&self->map, schema->uuid) != NULL);
    uint32_t counts[SK_WORKERS_MAX];
    count_shards(self, counts);
    for (uint32_t s = 0; s < schema->shard_count; s++) {
        uint32_t worker = least_loaded(counts, self->worker_count);
        collection->workers[s] = (uint16_t)worker;
        counts[worker]++;
    }
    sk_keeper_put_collection(out, collection);
    return SK_ERR_OK;
}

static enum sk_err plan_create(struct sk_keeper *self, const struct sk_request *request,
                               struct commit *out, struct sk_diag *d)
{
    struct sk_map_collection collection = {0};
    enum sk_err err = sk_schema_from_request(&collection.schema, request, d);
    if (err != SK_ERR_OK)
        return err;
    collection.schema.version = 1;
    return plan_new_collection(self, &collection, out, d);
}

/* The decoder holds every number to its range; names and ids of a snapshot's schema are held here. */
static enum sk_err check_stored(const struct sk_schema *schema, struct sk_diag *d)
{
    for (uint32_t i = 0; i < schema->vector_count; i++) {
        const char *name = schema->vectors[i].name;
        if (schema->vector_count > 1 || name[0] != '\0') {
            enum sk_err err = sk_name_check(sk_span_text(name), "schema", d);
            if (err != SK_ERR_OK)
                return err;
        }
        for (uint32_t k = 0; k < i; k++)
            if (strcmp(schema->vectors[k].name, name) == 0)
                return sk_fail_field(d, SK_ERR_INVALID, "schema", "vector field '%s' is there twice",
                                     name);
    }
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct sk_payload_field *field = &schema->fields[i];
        if (field->id == 0 || field->id > schema->field_id_next)
            return sk_fail_field(d, SK_ERR_INVALID, "schema", "payload field '%s' has id %u",
                                 field->name, field->id);
        for (uint32_t k = 0; k < i; k++)
            if (schema->fields[k].id == field->id || strcmp(schema->fields[k].name, field->name) == 0)
                return sk_fail_field(d, SK_ERR_INVALID, "schema",
                                     "payload field '%s' is there twice", field->name);
    }
    return SK_ERR_OK;
}

static enum sk_err plan_from_schema(struct sk_keeper *self, const struct sk_request *request,
                                    struct commit *out, struct sk_diag *d)
{
    struct sk_map_collection collection = {0};
    struct sk_schema *schema = &collection.schema;
    struct sk_reader from = sk_reader_of(request->schema);
    enum sk_err err = sk_schema_decode(schema, &from, d);
    if (err == SK_ERR_OK)
        err = check_stored(schema, d);
    if (err != SK_ERR_OK) {
        if (d != NULL && d->field[0] == '\0')
            memcpy(d->field, "schema", sizeof "schema");
        return err;
    }
    memset(schema->name, 0, sizeof schema->name);
    memcpy(schema->name, request->collection.bytes, request->collection.size);
    if (schema->version == 0)
        schema->version = 1;
    return plan_new_collection(self, &collection, out, d);
}

static enum sk_err plan_alter(struct sk_keeper *self, const struct sk_request *request,
                              struct commit *out, struct sk_diag *d)
{
    const struct sk_map_collection *there = NULL;
    enum sk_err err = sk_map_collection_of(&self->map, request->collection, &there, d);
    if (err != SK_ERR_OK)
        return err;
    struct sk_map_collection changed = *there;
    err = sk_schema_alter(&changed.schema, request, d);
    if (err == SK_ERR_OK && changed.schema.version != there->schema.version)
        sk_keeper_put_collection(out, &changed);
    return err;
}

static enum sk_err plan_drop(struct sk_keeper *self, const struct sk_request *request,
                             struct commit *out, struct sk_diag *d)
{
    const struct sk_map_collection *there = NULL;
    enum sk_err err = sk_map_collection_of(&self->map, request->collection, &there, d);
    if (err != SK_ERR_OK)
        return err;
    sk_keeper_remove_collection(out, there->schema.name);
    out->is_release = true;
    return SK_ERR_OK;
}

static enum sk_err plan_op(struct sk_keeper *self, const struct sk_request *request,
                           struct commit *out, struct sk_diag *d)
{
    switch (request->op) {
    case SK_OP_CREATE_COLLECTION:
        return plan_create(self, request, out, d);
    case SK_OP_CREATE_FROM_SCHEMA:
        return plan_from_schema(self, request, out, d);
    case SK_OP_ALTER_COLLECTION:
        return plan_alter(self, request, out, d);
    case SK_OP_DROP_COLLECTION:
        return plan_drop(self, request, out, d);
    case SK_OP_CREATE_KEY:
        return plan_create_key(self, request, out, d);
    case SK_OP_REVOKE_KEY:
        return plan_revoke_key(self, request, out, d);
    default:
        return sk_fail_field(d, SK_ERR_INVALID, "op", "the keeper does not serve '%s'",
                             sk_op_name(request->op));
    }
}

enum sk_err sk_keeper_plan(struct sk_keeper *self, const struct command *command,
                           struct commit *out, struct sk_diag *d)
{
    sk_keeper_commit_begin(out, self->map.version);
    enum sk_err err = sk_keeper_reserve(self, d);
    if (err == SK_ERR_OK)
        err = plan_op(self, &command->request, out, d);
    if (err != SK_ERR_OK || out->change_count == 0)
        return err;
    const struct stamp stamp = {command->header.incarnation, command->header.sequence};
    sk_keeper_put_applied(out, self->applied_next, &stamp);
    if (self->applied_next > SK_KEEPER_APPLIED_MAX)
        sk_keeper_remove_applied(out, self->applied_next - SK_KEEPER_APPLIED_MAX);
    sk_keeper_put_number(out, "version", self->map.version + 1);
    return sk_keeper_commit_close(out, d);
}

/* ---- another number of workers ---- */

/* One shard of the busiest worker, of the last collection that has one there. */
static bool move_one(struct sk_map_collection *collections, uint32_t collection_count,
                     uint32_t from, uint32_t to, bool *is_changed)
{
    for (uint32_t i = collection_count; i-- > 0;) {
        for (uint32_t s = collections[i].schema.shard_count; s-- > 0;) {
            if (collections[i].workers[s] == from) {
                collections[i].workers[s] = (uint16_t)to;
                is_changed[i] = true;
                return true;
            }
        }
    }
    return false;
}

static void share_out(struct sk_keeper *self, struct sk_map_collection *collections,
                      bool *is_changed)
{
    uint32_t counts[SK_WORKERS_MAX];
    count_shards(self, counts);
    for (uint32_t gone = self->worker_count; gone < SK_WORKERS_MAX; gone++) {
        for (; counts[gone] > 0; counts[gone]--) {
            uint32_t to = least_loaded(counts, self->worker_count);
            SK_CHECK(move_one(collections, self->map.collection_count, gone, to, is_changed));
            counts[to]++;
        }
    }
    for (;;) {
        uint32_t least = least_loaded(counts, self->worker_count), most = 0;
        for (uint32_t worker = 1; worker < self->worker_count; worker++)
            if (counts[worker] > counts[most])
                most = worker;
        if (counts[most] <= counts[least] + 1)
            return;
        SK_CHECK(move_one(collections, self->map.collection_count, most, least, is_changed));
        counts[most]--;
        counts[least]++;
    }
}

enum sk_err sk_keeper_plan_workers(struct sk_keeper *self, struct commit *out, struct sk_diag *d)
{
    bool is_changed[SK_COLLECTIONS_MAX] = {false};
    uint32_t count = self->map.collection_count;
    struct sk_map_collection *collections = calloc(count + 1, sizeof *collections);
    if (collections == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory to share out shards");
    if (count > 0)
        memcpy(collections, self->map.collections, count * sizeof *collections);
    share_out(self, collections, is_changed);
    sk_keeper_commit_begin(out, self->map.version);
    out->is_release = true; /* it replaces values by values of the same size */
    for (uint32_t i = 0; i < count; i++)
        if (is_changed[i])
            sk_keeper_put_collection(out, &collections[i]);
    free(collections);
    sk_keeper_put_number(out, "workers", self->worker_count);
    sk_keeper_put_number(out, "version", self->map.version + 1);
    return sk_keeper_commit_close(out, d);
}
