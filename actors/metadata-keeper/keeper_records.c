#include "actors/metadata-keeper/internal.h"

#include <stdio.h>
#include <stdlib.h>

/* Keys of the state:
 *   version, node_id, workers      a number
 *   c/<name>                       [schema, [worker of shard 0, ...]]
 *   k/<name>                       [public key, role]
 *   a/<serial, 16 hex digits>      [incarnation, sequence] of a stamp that was applied
 * Values are msgpack. */

enum { KEY_BYTES = 80 };

/* ---- writing ---- */

void sk_keeper_commit_begin(struct commit *self, uint64_t version)
{
    struct sk_buffer bytes = self->bytes;
    SK_CHECK(!self->is_submitted);
    sk_buffer_clear(&bytes);
    sk_put_u64(&bytes, version);
    self->version_before_size = bytes.is_broken ? 0 : bytes.size;
    if (!bytes.is_broken)
        memcpy(self->version_before, bytes.bytes, bytes.size);
    self->bytes = bytes;
    self->change_count = 0;
    self->is_release = false;
    self->is_applied = false;
    self->code = SK_ERR_OK;
    self->diag = (struct sk_diag){0};
}

static void begin_change(struct commit *to, const char *key)
{
    SK_CHECK(to->change_count < TXN_CHANGES_MAX);
    to->changes[to->change_count].key_at = to->bytes.size;
    to->changes[to->change_count].key_size = strlen(key);
    sk_buffer_append(&to->bytes, key, strlen(key));
    to->changes[to->change_count].value_at = to->bytes.size;
    to->changes[to->change_count].is_removed = false;
}

static void end_change(struct commit *to)
{
    to->changes[to->change_count].value_size =
        to->bytes.size - to->changes[to->change_count].value_at;
    to->change_count++;
}

static void remove_pair(struct commit *to, const char *key)
{
    begin_change(to, key);
    to->changes[to->change_count].is_removed = true;
    end_change(to);
}

void sk_keeper_put_collection(struct commit *to, const struct sk_map_collection *collection)
{
    char key[KEY_BYTES];
    (void)snprintf(key, sizeof key, "c/%s", collection->schema.name);
    begin_change(to, key);
    sk_put_array(&to->bytes, 2);
    sk_schema_encode(&to->bytes, &collection->schema);
    sk_put_array(&to->bytes, collection->schema.shard_count);
    for (uint32_t s = 0; s < collection->schema.shard_count; s++)
        sk_put_u64(&to->bytes, collection->workers[s]);
    end_change(to);
}

void sk_keeper_remove_collection(struct commit *to, const char *name)
{
    char key[KEY_BYTES];
    (void)snprintf(key, sizeof key, "c/%s", name);
    remove_pair(to, key);
}

void sk_keeper_put_key(struct commit *to, const struct sk_map_key *key)
{
    char name[KEY_BYTES];
    (void)snprintf(name, sizeof name, "k/%s", key->name);
    begin_change(to, name);
    sk_put_array(&to->bytes, 2);
    sk_put_text(&to->bytes, key->public_key);
    sk_put_text(&to->bytes, sk_role_name(key->role));
    end_change(to);
}

void sk_keeper_remove_key(struct commit *to, const char *name)
{
    char key[KEY_BYTES];
    (void)snprintf(key, sizeof key, "k/%s", name);
    remove_pair(to, key);
}

void sk_keeper_put_number(struct commit *to, const char *name, uint64_t value)
{
    begin_change(to, name);
    sk_put_u64(&to->bytes, value);
    end_change(to);
}

void sk_keeper_put_applied(struct commit *to, uint64_t serial, const struct stamp *stamp)
{
    char key[KEY_BYTES];
    (void)snprintf(key, sizeof key, "a/%016llx", (unsigned long long)serial);
    begin_change(to, key);
    sk_put_array(&to->bytes, 2);
    sk_put_u64(&to->bytes, stamp->incarnation);
    sk_put_u64(&to->bytes, stamp->sequence);
    end_change(to);
}

void sk_keeper_remove_applied(struct commit *to, uint64_t serial)
{
    char key[KEY_BYTES];
    (void)snprintf(key, sizeof key, "a/%016llx", (unsigned long long)serial);
    remove_pair(to, key);
}

enum sk_err sk_keeper_commit_close(struct commit *self, struct sk_diag *d)
{
    enum sk_err err = sk_buffer_check(&self->bytes, d);
    for (unsigned i = 0; i < self->change_count && err == SK_ERR_OK; i++) {
        const uint8_t *bytes = self->bytes.bytes;
        self->pairs[i].key = sk_span_of(bytes + self->changes[i].key_at, self->changes[i].key_size);
        self->pairs[i].value =
            self->changes[i].is_removed
                ? (struct sk_span){0}
                : sk_span_of(bytes + self->changes[i].value_at, self->changes[i].value_size);
    }
    return err;
}

/* In the WRITE lane. Another version than the one it was planned on means another keeper's change. */
void sk_keeper_commit_run(struct sk_job *job)
{
    struct commit *self = (struct commit *)job;
    const struct sk_state_pair compare = {
        sk_span_text("version"), sk_span_of(self->version_before, self->version_before_size)};
    const struct sk_state_txn txn = {.compares = &compare,
                                     .compare_count = 1,
                                     .changes = self->pairs,
                                     .change_count = self->change_count,
                                     .is_release = self->is_release};
    self->code = self->state->commit(self->state->impl, &txn, &self->is_applied, &self->diag);
}

/* ---- reading ---- */

static enum sk_err damaged(struct sk_span key, struct sk_diag *d)
{
    char shown[KEY_BYTES];
    size_t size = key.size < sizeof shown - 1 ? key.size : sizeof shown - 1;
    for (size_t i = 0; i < size; i++)
        shown[i] = key.bytes[i] >= ' ' && key.bytes[i] < 127 ? (char)key.bytes[i] : '?';
    shown[size] = '\0';
    return sk_fail(d, SK_ERR_INTERNAL, "the keeper's state is damaged at '%s'", shown);
}

static bool read_u64(struct sk_reader *from, uint64_t most, uint64_t *out)
{
    struct sk_value value;
    if (sk_read(from, &value, NULL) != SK_ERR_OK || value.kind != SK_VALUE_UNSIGNED ||
        value.u64 > most)
        return false;
    *out = value.u64;
    return true;
}

static bool read_array(struct sk_reader *from, uint32_t count)
{
    struct sk_value value;
    return sk_read(from, &value, NULL) == SK_ERR_OK && value.kind == SK_VALUE_ARRAY &&
           value.count == count;
}

/* Grows *array to hold one more than count. */
static bool grow(void **array, uint32_t *capacity, uint32_t count, size_t size)
{
    if (count < *capacity)
        return true;
    uint32_t more = *capacity == 0 ? 8 : *capacity * 2;
    void *grown = realloc(*array, more * size);
    if (grown == NULL)
        return false;
    *array = grown;
    *capacity = more;
    return true;
}

enum sk_err sk_keeper_reserve(struct sk_keeper *self, struct sk_diag *d)
{
    void *collections = self->map.collections, *keys = self->map.keys;
    bool has_room = grow(&collections, &self->collection_capacity, self->map.collection_count,
                         sizeof *self->map.collections);
    self->map.collections = collections;
    has_room = has_room && grow(&keys, &self->key_capacity, self->map.key_count,
                                sizeof *self->map.keys);
    self->map.keys = keys;
    return has_room ? SK_ERR_OK : sk_fail(d, SK_ERR_NOMEM, "no memory for a larger map");
}

/* Where name is, or where it belongs: both lists are in order of their names. */
static uint32_t place_of(const char *first, size_t stride, uint32_t count, struct sk_span name,
                         bool *is_there)
{
    uint32_t low = 0, high = count;
    *is_there = false;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const char *other = first + middle * stride;
        size_t size = strlen(other), least = size < name.size ? size : name.size;
        int order = memcmp(other, name.bytes, least);
        if (order == 0)
            order = size < name.size ? -1 : size > name.size;
        if (order == 0) {
            *is_there = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static enum sk_err on_collection(struct sk_keeper *self, const struct sk_state_pair *pair,
                                 struct sk_span name, struct sk_diag *d)
{
    struct sk_map *map = &self->map;
    bool is_there = false;
    uint32_t at = place_of(map->collection_count > 0 ? map->collections[0].schema.name : "",
                           sizeof *map->collections, map->collection_count, name, &is_there);
    if (pair->value.bytes == NULL) {
        if (is_there) {
            map->collection_count--;
            memmove(&map->collections[at], &map->collections[at + 1],
                    (map->collection_count - at) * sizeof *map->collections);
        }
        return SK_ERR_OK;
    }
    struct sk_reader from = sk_reader_of(pair->value);
    struct sk_map_collection collection = {0};
    if (!read_array(&from, 2) || sk_schema_decode(&collection.schema, &from, d) != SK_ERR_OK ||
        !sk_span_is(name, collection.schema.name) ||
        !read_array(&from, collection.schema.shard_count))
        return damaged(pair->key, d);
    for (uint32_t s = 0; s < collection.schema.shard_count; s++) {
        uint64_t worker = 0;
        if (!read_u64(&from, SK_WORKERS_MAX - 1, &worker))
            return damaged(pair->key, d);
        collection.workers[s] = (uint16_t)worker;
    }
    if (!is_there) {
        if (map->collection_count == SK_COLLECTIONS_MAX)
            return damaged(pair->key, d);
        enum sk_err err = sk_keeper_reserve(self, d);
        if (err != SK_ERR_OK)
            return err;
        memmove(&map->collections[at + 1], &map->collections[at],
                (map->collection_count - at) * sizeof *map->collections);
        map->collection_count++;
    }
    map->collections[at] = collection;
    return SK_ERR_OK;
}

static enum sk_err on_key(struct sk_keeper *self, const struct sk_state_pair *pair,
                          struct sk_span name, struct sk_diag *d)
{
    struct sk_map *map = &self->map;
    bool is_there = false;
    uint32_t at = place_of(map->key_count > 0 ? map->keys[0].name : "", sizeof *map->keys,
                           map->key_count, name, &is_there);
    if (pair->value.bytes == NULL) {
        if (is_there) {
            map->key_count--;
            memmove(&map->keys[at], &map->keys[at + 1], (map->key_count - at) * sizeof *map->keys);
        }
        return SK_ERR_OK;
    }
    struct sk_reader from = sk_reader_of(pair->value);
    struct sk_value public_key, role;
    struct sk_map_key key = {0};
    if (!read_array(&from, 2) || sk_read(&from, &public_key, NULL) != SK_ERR_OK ||
        public_key.kind != SK_VALUE_TEXT || public_key.span.size != SK_Z85_KEY_BYTES - 1 ||
        sk_read(&from, &role, NULL) != SK_ERR_OK || role.kind != SK_VALUE_TEXT ||
        sk_role_parse(&key.role, role.span, d) != SK_ERR_OK || name.size > SK_NAME_BYTES_MAX)
        return damaged(pair->key, d);
    memcpy(key.name, name.bytes, name.size);
    memcpy(key.public_key, public_key.span.bytes, public_key.span.size);
    if (!is_there) {
        if (map->key_count == SK_KEYS_MAX)
            return damaged(pair->key, d);
        enum sk_err err = sk_keeper_reserve(self, d);
        if (err != SK_ERR_OK)
            return err;
        memmove(&map->keys[at + 1], &map->keys[at], (map->key_count - at) * sizeof *map->keys);
        map->key_count++;
    }
    map->keys[at] = key;
    return SK_ERR_OK;
}

static enum sk_err on_applied(struct sk_keeper *self, const struct sk_state_pair *pair,
                              struct sk_span digits, struct sk_diag *d)
{
    char text[17] = "";
    char *end = text;
    if (digits.size == sizeof text - 1)
        memcpy(text, digits.bytes, digits.size);
    uint64_t serial = strtoull(text, &end, 16);
    if (serial == 0 || *end != '\0')
        return damaged(pair->key, d);
    struct applied *slot = &self->applied[serial % SK_KEEPER_APPLIED_MAX];
    if (pair->value.bytes == NULL) {
        if (slot->serial == serial)
            *slot = (struct applied){0};
        return SK_ERR_OK;
    }
    struct sk_reader from = sk_reader_of(pair->value);
    struct applied applied = {.serial = serial};
    if (!read_array(&from, 2) || !read_u64(&from, UINT64_MAX, &applied.stamp.incarnation) ||
        !read_u64(&from, UINT64_MAX, &applied.stamp.sequence))
        return damaged(pair->key, d);
    *slot = applied;
    if (serial >= self->applied_next)
        self->applied_next = serial + 1;
    return SK_ERR_OK;
}

static enum sk_err on_number(struct sk_keeper *self, const struct sk_state_pair *pair,
                             struct sk_diag *d)
{
    uint64_t number = 0;
    struct sk_reader from = sk_reader_of(pair->value);
    if (pair->value.bytes == NULL || !read_u64(&from, UINT64_MAX, &number))
        return damaged(pair->key, d);
    if (sk_span_is(pair->key, "version"))
        self->map.version = number;
    else if (sk_span_is(pair->key, "node_id"))
        self->map.node_id = number;
    else if (sk_span_is(pair->key, "workers") && number <= SK_WORKERS_MAX)
        self->workers_known = (uint32_t)number;
    else
        return damaged(pair->key, d);
    return SK_ERR_OK;
}

static void forget(struct sk_keeper *self)
{
    self->map.version = 0;
    self->map.node_id = 0;
    self->map.collection_count = 0;
    self->map.key_count = 0;
    self->workers_known = 0;
    memset(self->applied, 0, sizeof self->applied);
    self->applied_next = 1;
}

enum sk_err sk_keeper_on_pair(void *arg, const struct sk_state_pair *pair, struct sk_diag *d)
{
    struct sk_keeper *self = arg;
    sk_buffer_clear(&self->packed);
    if (pair->key.bytes == NULL) {
        forget(self);
        return SK_ERR_OK;
    }
    if (pair->key.size < 3 || pair->key.bytes[1] != '/')
        return on_number(self, pair, d);
    struct sk_span name = sk_span_of(pair->key.bytes + 2, pair->key.size - 2);
    switch (pair->key.bytes[0]) {
    case 'c':
        return on_collection(self, pair, name, d);
    case 'k':
        return on_key(self, pair, name, d);
    case 'a':
        return on_applied(self, pair, name, d);
    default:
        return damaged(pair->key, d);
    }
}

bool sk_keeper_was_applied(const struct sk_keeper *self, const struct stamp *stamp)
{
    for (unsigned i = 0; i < SK_KEEPER_APPLIED_MAX; i++)
        if (self->applied[i].serial != 0 &&
            self->applied[i].stamp.incarnation == stamp->incarnation &&
            self->applied[i].stamp.sequence == stamp->sequence)
            return true;
    return false;
}
