/* Filters to sets of rows: payload indexes where fields are declared and ready, a scan of the records
 * where not. sk_filter_matches() is the reference that tests compare with. */
#include "actors/shard-worker/store/internal.h"

#include <float.h>
#include <math.h>

struct select {
    const struct sk_store *store;
    MDB_txn *txn;
    const struct field_states *states; /* of this snapshot */
    const roaring_bitmap_t *all;       /* live rows */
    char *warning;                     /* 200 bytes */
    struct sk_diag *d;
};

static enum sk_err select_node(struct select *self, const struct sk_filter *node,
                               roaring_bitmap_t *out);

/* ---- scans ---- */

static void warn_of_scan(struct select *self, const char *key, bool is_building)
{
    if (self->warning[0] == '\0')
        (void)snprintf(self->warning, 200,
                       is_building ? "payload field '%.64s' is still being indexed: the filter scanned "
                                     "the records"
                                   : "payload field '%.64s' is not declared: the filter scanned the "
                                     "records; alter_collection can index it",
                       key);
}

static enum sk_err scan_rows(struct select *self, const struct sk_filter *node,
                             const roaring_bitmap_t *among, roaring_bitmap_t *out)
{
    roaring_uint32_iterator_t rows;
    roaring_init_iterator(among, &rows);
    for (; rows.has_value; roaring_advance_uint32_iterator(&rows)) {
        struct record_view view;
        enum sk_err err = sk_record_get(self->store, self->txn, rows.current_value, &view, self->d);
        if (err == SK_ERR_NOT_FOUND)
            continue;
        if (err != SK_ERR_OK)
            return err;
        if (sk_filter_matches(node, &self->store->schema, &view.id, view.payload))
            roaring_bitmap_add(out, rows.current_value);
    }
    return SK_ERR_OK;
}

/* ---- conditions on an indexed field ---- */

/* An integer against the double nearest to it. */
static int compare_whole(int64_t whole, double nearest)
{
    if (nearest >= 9223372036854775808.0)
        return -1;
    int64_t back = (int64_t)nearest;
    return whole < back ? -1 : whole > back;
}

static enum sk_err or_value(struct select *self, const struct sk_payload_field *field,
                            const struct sk_operand *operand, roaring_bitmap_t *out)
{
    uint8_t key[512], value[460];
    struct sk_typed typed = {.kind = field->kind,
                             .text = operand->text,
                             .i64 = operand->i64,
                             .f64 = operand->kind == SK_OPERAND_I64 ? (double)operand->i64 : operand->f64,
                             .boolean = operand->boolean};
    switch (field->kind) {
    case SK_PAYLOAD_KEYWORD:
        if (operand->kind != SK_OPERAND_TEXT)
            return SK_ERR_OK;
        break;
    case SK_PAYLOAD_BOOL:
        if (operand->kind != SK_OPERAND_BOOL)
            return SK_ERR_OK;
        break;
    case SK_PAYLOAD_INTEGER:
        if (operand->kind == SK_OPERAND_F64) { /* 3.0 equals 3; 3.5 and 1e300 equal no integer */
            if (operand->f64 != floor(operand->f64) || operand->f64 >= 9223372036854775808.0 ||
                operand->f64 < -9223372036854775808.0)
                return SK_ERR_OK;
            typed.i64 = (int64_t)operand->f64;
        } else if (operand->kind != SK_OPERAND_I64) {
            return SK_ERR_OK;
        }
        break;
    case SK_PAYLOAD_DATETIME:
        if (operand->kind == SK_OPERAND_TEXT ? !sk_datetime_parse(operand->text, &typed.i64)
                                             : operand->kind != SK_OPERAND_I64)
            return SK_ERR_OK;
        break;
    case SK_PAYLOAD_FLOAT:
        if (operand->kind == SK_OPERAND_I64 ? compare_whole(operand->i64, typed.f64) != 0
                                            : operand->kind != SK_OPERAND_F64)
            return SK_ERR_OK;
        break;
    case SK_PAYLOAD_GEO:
        return SK_ERR_OK;
    }
    uint16_t size = sk_index_key(key, field->id, KEY_VALUE, value, sk_index_value(&typed, value));
    return sk_index_or(self->store, self->txn, key, size, out, self->d);
}

/* Every bitmap whose value lies in low..high (8 ordered bytes, both ends in). */
static enum sk_err or_span(struct select *self, uint16_t field, const uint8_t low[8],
                           const uint8_t high[8], roaring_bitmap_t *out)
{
    uint8_t bytes[16];
    MDB_cursor *cursor = NULL;
    MDB_val value;
    if (memcmp(low, high, 8) > 0)
        return SK_ERR_OK;
    uint16_t size = sk_index_key(bytes, field, KEY_VALUE, low, 8);
    memset(bytes + size, 0, 2);
    MDB_val key = sk_val(bytes, (size_t)size + 2);
    int rc = mdb_cursor_open(self->txn, self->store->tables[T_PINDEX], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "pindex", self->d);
    enum sk_err err = SK_ERR_OK;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && key.mv_size == 13 && memcmp(key.mv_data, bytes, 3) == 0 &&
           memcmp((const uint8_t *)key.mv_data + 3, high, 8) <= 0) {
        roaring_bitmap_t *rows = sk_index_bitmap(value);
        if (rows == NULL) {
            uint64_t chunk = sk_get_be((const uint8_t *)key.mv_data + 11, 2);
            err = sk_store_corrupt(self->d, "pindex", chunk, "not a roaring bitmap; verify mends it");
            break;
        }
        roaring_bitmap_or_inplace(out, rows);
        roaring_bitmap_free(rows);
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return err;
}

/* The smallest integer that is in (low end) or the largest (high end); false: none is. */
static bool bound_i64(enum sk_payload_kind kind, enum sk_bound bound, const struct sk_operand *operand,
                      bool is_low, int64_t *out)
{
    int64_t value = operand->i64;
    bool is_open = bound == SK_BOUND_OPEN;
    if (bound == SK_BOUND_NONE) {
        *out = is_low ? INT64_MIN : INT64_MAX;
        return true;
    }
    if (operand->kind == SK_OPERAND_TEXT) {
        if (kind != SK_PAYLOAD_DATETIME || !sk_datetime_parse(operand->text, &value))
            return false;
    } else if (operand->kind == SK_OPERAND_F64) {
        double edge = is_low ? ceil(operand->f64) : floor(operand->f64);
        is_open = is_open && edge == operand->f64;
        if (kind == SK_PAYLOAD_DATETIME)
            return false;
        if (edge >= 9223372036854775808.0 || edge < -9223372036854775808.0) {
            bool is_above = edge > 0;
            *out = is_low ? INT64_MIN : INT64_MAX;
            return is_above != is_low;
        }
        value = (int64_t)edge;
    }
    if (is_open && value == (is_low ? INT64_MAX : INT64_MIN))
        return false;
    *out = is_open ? value + (is_low ? 1 : -1) : value;
    return true;
}

/* The smallest double that is in (low end) or the largest (high end). */
static double bound_f64(enum sk_bound bound, const struct sk_operand *operand, bool is_low)
{
    double outward = is_low ? -INFINITY : INFINITY;
    if (bound == SK_BOUND_NONE)
        return outward;
    bool is_integer = operand->kind == SK_OPERAND_I64;
    double value = is_integer ? (double)operand->i64 : operand->f64;
    int order = is_integer ? compare_whole(operand->i64, value) : 0;
    bool is_out = order == 0 ? bound == SK_BOUND_OPEN : is_low == (order > 0);
    return is_out ? nextafter(value, -outward) : value;
}

static enum sk_err or_range(struct select *self, const struct sk_payload_field *field,
                            const struct sk_filter *node, roaring_bitmap_t *out)
{
    uint8_t low[8], high[8];
    if (field->kind == SK_PAYLOAD_FLOAT) {
        sk_put_ordered_f64(low, bound_f64(node->u.range.low, &node->u.range.low_value, true));
        sk_put_ordered_f64(high, bound_f64(node->u.range.high, &node->u.range.high_value, false));
    } else if (field->kind == SK_PAYLOAD_INTEGER || field->kind == SK_PAYLOAD_DATETIME) {
        int64_t from, to;
        if (!bound_i64(field->kind, node->u.range.low, &node->u.range.low_value, true, &from) ||
            !bound_i64(field->kind, node->u.range.high, &node->u.range.high_value, false, &to))
            return SK_ERR_OK;
        sk_put_ordered_i64(low, from);
        sk_put_ordered_i64(high, to);
    } else {
        return SK_ERR_OK;
    }
    return or_span(self, field->id, low, high, out);
}

/* ---- geo: cells that cover the box, then the exact test ---- */

struct box {
    double lat_min, lat_max, lon_min, lon_max;
};

static bool overlaps(const struct box *a, const struct box *b)
{
    return a->lat_min <= b->lat_max && b->lat_min <= a->lat_max && a->lon_min <= b->lon_max &&
           b->lon_min <= a->lon_max;
}

/* Splits cells until they are about as small as the box, at most 64 spans. */
static enum sk_err or_cells(struct select *self, uint16_t field, const struct box *wanted,
                            const struct box *cell, uint64_t code, unsigned bits, unsigned depth_max,
                            roaring_bitmap_t *out)
{
    if (!overlaps(cell, wanted))
        return SK_ERR_OK;
    bool is_inside = cell->lat_min >= wanted->lat_min && cell->lat_max <= wanted->lat_max &&
                     cell->lon_min >= wanted->lon_min && cell->lon_max <= wanted->lon_max;
    if (is_inside || bits >= depth_max) {
        uint8_t low[8], high[8];
        sk_put_be(low, bits == 0 ? 0 : code << (64 - bits), 8);
        sk_put_be(high, bits == 0 ? UINT64_MAX : (code << (64 - bits)) | (UINT64_MAX >> bits), 8);
        return or_span(self, field, low, high, out);
    }
    for (unsigned half = 0; half < 2; half++) {
        struct box part = *cell;
        double lon = (cell->lon_min + cell->lon_max) / 2, lat = (cell->lat_min + cell->lat_max) / 2;
        if (bits % 2 == 0)
            *(half == 0 ? &part.lon_max : &part.lon_min) = lon;
        else
            *(half == 0 ? &part.lat_max : &part.lat_min) = lat;
        enum sk_err err = or_cells(self, field, wanted, &part, code << 1 | half, bits + 1, depth_max, out);
        if (err != SK_ERR_OK)
            return err;
    }
    return SK_ERR_OK;
}

static enum sk_err or_box(struct select *self, uint16_t field, const struct box *wanted,
                          roaring_bitmap_t *out)
{
    static const struct box world = {-90, 90, -180, 180};
    static const double edge = 1e-7; /* a centimetre: cells round their borders */
    struct box wider = {wanted->lat_min - edge, wanted->lat_max + edge, wanted->lon_min - edge,
                        wanted->lon_max + edge};
    double height = wanted->lat_max - wanted->lat_min, width = wanted->lon_max - wanted->lon_min;
    unsigned bits = 6; /* about 8 cells along the larger side */
    for (double h = 180, w = 360; bits < 60 && (h > height / 4 && w > width / 4); h /= 2, w /= 2)
        bits += 2;
    return or_cells(self, field, &wider, &world, 0, 0, bits > 60 ? 60 : bits, out);
}

static void box_around(double lat, double lon, double radius_m, struct box *out)
{
    double degrees = radius_m / 111194.9266 * 1.0001 + 1e-9;
    out->lat_min = lat - degrees;
    out->lat_max = lat + degrees;
    double widest = fmax(fabs(out->lat_min), fabs(out->lat_max));
    double scale = widest >= 89.9 ? 0 : cos(widest * 0.017453292519943295);
    double across = scale <= 0 ? 360 : degrees / scale;
    out->lon_min = lon - across;
    out->lon_max = lon + across;
    if (out->lat_min < -90)
        out->lat_min = -90;
    if (out->lat_max > 90)
        out->lat_max = 90;
}

static enum sk_err or_geo(struct select *self, const struct sk_payload_field *field,
                          const struct sk_filter *node, roaring_bitmap_t *out)
{
    struct box wanted;
    if (node->kind == SK_FILTER_GEO_RADIUS)
        box_around(node->u.radius.lat, node->u.radius.lon, node->u.radius.radius_m, &wanted);
    else
        wanted = (struct box){node->u.box.lat_min, node->u.box.lat_max, node->u.box.lon_min,
                              node->u.box.lon_max};
    struct box parts[2] = {wanted, wanted};
    unsigned count = 1;
    if (wanted.lon_max - wanted.lon_min >= 360) {
        parts[0].lon_min = -180, parts[0].lon_max = 180;
    } else if (wanted.lon_min > wanted.lon_max) { /* a box over the date line */
        parts[0].lon_max = 180;
        parts[1].lon_min = -180;
        count = 2;
    } else if (wanted.lon_min < -180) {
        parts[0].lon_min = -180;
        parts[1].lon_min = wanted.lon_min + 360, parts[1].lon_max = 180;
        count = 2;
    } else if (wanted.lon_max > 180) {
        parts[0].lon_max = 180;
        parts[1].lon_min = -180, parts[1].lon_max = wanted.lon_max - 360;
        count = 2;
    }
    roaring_bitmap_t *near = roaring_bitmap_create();
    if (near == NULL)
        return sk_fail(self->d, SK_ERR_NOMEM, "no memory for a filter");
    enum sk_err err = SK_ERR_OK;
    for (unsigned i = 0; i < count && err == SK_ERR_OK; i++)
        err = or_box(self, field->id, &parts[i], near);
    if (err == SK_ERR_OK)
        err = scan_rows(self, node, near, out);
    roaring_bitmap_free(near);
    return err;
}

/* ---- the tree ---- */

static enum sk_err select_exists(struct select *self, const struct sk_payload_field *field,
                                 bool exists, roaring_bitmap_t *out)
{
    uint8_t key[8];
    uint16_t size = sk_index_key(key, field->id, KEY_EXISTS, NULL, 0);
    enum sk_err err = sk_index_or(self->store, self->txn, key, size, out, self->d);
    if (err == SK_ERR_OK && !exists) {
        roaring_bitmap_t *others = roaring_bitmap_andnot(self->all, out);
        if (others == NULL)
            return sk_fail(self->d, SK_ERR_NOMEM, "no memory for a filter");
        roaring_bitmap_clear(out);
        roaring_bitmap_or_inplace(out, others);
        roaring_bitmap_free(others);
    }
    return err;
}

static enum sk_err select_ids(struct select *self, const struct sk_filter *node, roaring_bitmap_t *out)
{
    for (uint32_t i = 0; i < node->u.ids.count; i++) {
        MDB_val key = sk_val(node->u.ids.ids[i].bytes, node->u.ids.ids[i].size), value;
        uint32_t row;
        int rc = mdb_get(self->txn, self->store->tables[T_IDS], &key, &value);
        if (rc == MDB_NOTFOUND)
            continue;
        if (rc != 0)
            return sk_store_fail(NULL, rc, "ids", self->d);
        if (value.mv_size != sizeof row)
            return sk_store_corrupt(self->d, "ids", i, "not a row");
        memcpy(&row, value.mv_data, sizeof row);
        roaring_bitmap_add(out, row);
    }
    return SK_ERR_OK;
}

static enum sk_err select_leaf(struct select *self, const struct sk_filter *node,
                               roaring_bitmap_t *out)
{
    if (node->kind == SK_FILTER_IDS)
        return select_ids(self, node, out);
    const struct sk_payload_field *field = sk_schema_field(&self->store->schema, node->key);
    const struct field_state *state = field == NULL ? NULL : sk_states_find(self->states, field->id);
    bool is_ready = state != NULL && state->is_ready;
    if (!is_ready) {
        warn_of_scan(self, node->key, field != NULL);
        return scan_rows(self, node, self->all, out);
    }
    enum sk_err err = SK_ERR_OK;
    switch (node->kind) {
    case SK_FILTER_ANY:
        for (uint32_t i = 0; i < node->u.any.count && err == SK_ERR_OK; i++)
            err = or_value(self, field, &node->u.any.values[i], out);
        return err;
    case SK_FILTER_RANGE:
        return or_range(self, field, node, out);
    case SK_FILTER_GEO_RADIUS:
    case SK_FILTER_GEO_BOX:
        return field->kind == SK_PAYLOAD_GEO ? or_geo(self, field, node, out) : SK_ERR_OK;
    case SK_FILTER_EXISTS:
        return select_exists(self, field, node->u.exists, out);
    default:
        return SK_ERR_OK;
    }
}

enum joining { JOIN_AND, JOIN_OR, JOIN_AND_NOT };

static enum sk_err join(struct select *self, struct sk_filter *const *list, uint32_t count,
                        enum joining how, roaring_bitmap_t *to)
{
    enum sk_err err = SK_ERR_OK;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        roaring_bitmap_t *one = roaring_bitmap_create();
        if (one == NULL)
            return sk_fail(self->d, SK_ERR_NOMEM, "no memory for a filter");
        err = select_node(self, list[i], one);
        if (how == JOIN_AND)
            roaring_bitmap_and_inplace(to, one);
        else if (how == JOIN_OR)
            roaring_bitmap_or_inplace(to, one);
        else
            roaring_bitmap_andnot_inplace(to, one);
        roaring_bitmap_free(one);
    }
    return err;
}

/* What a leaf finds may name rows whose time is over: the group cuts with `all`. */
static enum sk_err select_group(struct select *self, const struct sk_filter *node,
                                roaring_bitmap_t *out)
{
    enum sk_err err = SK_ERR_OK;
    if (node->u.group.should_count > 0) {
        err = join(self, node->u.group.should, node->u.group.should_count, JOIN_OR, out);
        roaring_bitmap_and_inplace(out, self->all);
    } else {
        roaring_bitmap_or_inplace(out, self->all);
    }
    if (err == SK_ERR_OK)
        err = join(self, node->u.group.must, node->u.group.must_count, JOIN_AND, out);
    if (err == SK_ERR_OK)
        err = join(self, node->u.group.must_not, node->u.group.must_not_count, JOIN_AND_NOT, out);
    return err;
}

static enum sk_err select_node(struct select *self, const struct sk_filter *node, roaring_bitmap_t *out)
{
    if (node->kind == SK_FILTER_GROUP)
        return select_group(self, node, out);
    return select_leaf(self, node, out);
}

/* Records whose time is over and that are not swept yet. */
static enum sk_err take_out_expired(const struct sk_store *self, MDB_txn *txn, uint64_t wall_us,
                                    roaring_bitmap_t *rows, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    int rc = mdb_cursor_open(txn, self->tables[T_EXPIRY], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "expiry", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (rc == 0 && key.mv_size == 12 && sk_get_be(key.mv_data, 8) <= wall_us) {
        roaring_bitmap_remove(rows, (uint32_t)sk_get_be((const uint8_t *)key.mv_data + 8, 4));
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return SK_ERR_OK;
}

enum sk_err sk_store_select_txn(const struct sk_store *self, MDB_txn *txn, uint64_t wall_us,
                                const struct sk_filter *filter, struct sk_selection *out,
                                struct sk_diag *d)
{
    uint8_t key[8];
    struct field_states states;
    memset(out, 0, sizeof *out);
    roaring_bitmap_t *all = roaring_bitmap_create();
    if (all == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    uint16_t size = sk_index_key(key, 0, KEY_ALL, NULL, 0);
    enum sk_err err = sk_index_or(self, txn, key, size, all, d);
    if (err == SK_ERR_OK)
        err = take_out_expired(self, txn, wall_us, all, d);
    if (err == SK_ERR_OK && filter != NULL) {
        sk_states_load(self, txn, &states);
        struct select select = {self, txn, &states, all, out->warning, d};
        out->rows = roaring_bitmap_create();
        err = out->rows == NULL ? sk_fail(d, SK_ERR_NOMEM, "no memory for a filter")
                                : select_node(&select, filter, out->rows);
        if (err == SK_ERR_OK)
            roaring_bitmap_and_inplace(out->rows, all);
        roaring_bitmap_free(all);
    } else {
        out->rows = all;
    }
    if (err != SK_ERR_OK) {
        sk_selection_deinit(out);
        return err;
    }
    out->count = roaring_bitmap_get_cardinality(out->rows);
    return SK_ERR_OK;
}

enum sk_err sk_store_select(struct sk_store_reader *self, const struct sk_filter *filter,
                            struct sk_selection *out, struct sk_diag *d)
{
    SK_CHECK(self->is_active);
    return sk_store_select_txn(self->store, self->txn, self->wall_us, filter, out, d);
}

void sk_selection_deinit(struct sk_selection *self)
{
    sk_bitmap_free(self->rows);
    self->rows = NULL;
    self->count = 0;
}

bool sk_selection_has(const struct sk_selection *self, uint32_t row)
{
    return roaring_bitmap_contains(self->rows, row);
}

void sk_selection_each(const struct sk_selection *self, bool (*each)(void *impl, uint32_t row),
                       void *impl)
{
    roaring_uint32_iterator_t rows;
    roaring_init_iterator(self->rows, &rows);
    while (rows.has_value && each(impl, rows.current_value))
        roaring_advance_uint32_iterator(&rows);
}

struct words {
    uint64_t *words;
    uint32_t count;
};

static bool set_word(uint32_t row, void *impl)
{
    struct words *self = impl;
    if (row / 64 >= self->count)
        return false;
    self->words[row / 64] |= UINT64_C(1) << (row % 64);
    return true;
}

void sk_selection_words(const struct sk_selection *self, uint64_t *words, uint32_t word_count)
{
    struct words to = {words, word_count};
    memset(words, 0, (size_t)word_count * sizeof *words);
    roaring_iterate(self->rows, set_word, &to);
}
