/* links: sk_index */
/* An index image from a disk, and a delta after it. Checksums are made to fit, so that what lies
 * behind them is reached: the loader must refuse, or give an index that is whole and can be
 * searched. Input: u32 size of the image (little-endian), the image without its checksum, the
 * delta's records. */
#include "actors/shard-worker/index/internal.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

enum { DIM = 4, ROWS_MAX = 4096, DELTA_MAGIC = 0x31444B53 /* "SKD1", as in delta.c */ };

struct image {
    const uint8_t *at;
    size_t left;
    uint64_t hash;
};

/* The checksum is asked for after everything else: then it is given as it should be. */
static bool read_image(void *impl, void *bytes, size_t size)
{
    struct image *self = impl;
    if (self->left == 0 && size == sizeof self->hash) {
        memcpy(bytes, &self->hash, size);
        return true;
    }
    if (size > self->left)
        return false;
    memcpy(bytes, self->at, size);
    self->hash = sk_hash(self->hash, bytes, size);
    self->at += size;
    self->left -= size;
    return true;
}

static bool fetch(void *impl, uint32_t row, float *out)
{
    (void)impl;
    for (unsigned i = 0; i < DIM; i++)
        out[i] = (float)(row * 7 + i * 3 + 1);
    return row < ROWS_MAX;
}

static bool write_nothing(void *impl, const void *bytes, size_t size)
{
    (void)impl;
    (void)bytes;
    (void)size;
    return true;
}

static enum sk_err apply(struct sk_index *index, const uint8_t *records, size_t size)
{
    uint8_t *delta = malloc(SK_DELTA_HEADER_BYTES + size);
    SK_CHECK(delta != NULL);
    const uint32_t magic = DELTA_MAGIC, bytes = (uint32_t)size;
    const uint64_t hash = sk_hash(DELTA_MAGIC, records, size);
    memcpy(delta, &magic, 4);
    memcpy(delta + 4, &bytes, 4);
    memcpy(delta + 8, &hash, 8);
    memcpy(delta + SK_DELTA_HEADER_BYTES, records, size);
    enum sk_err err =
        sk_index_apply_delta(index, sk_span_of(delta, SK_DELTA_HEADER_BYTES + size), NULL);
    free(delta);
    return err;
}

static void use(struct sk_index *index)
{
    const float vector[DIM] = {1, 2, 3, 4};
    uint32_t rows[40];
    float scores[40];
    struct sk_index_reader *reader = NULL;
    struct sk_index_query query = {.vector = vector, .k = 10};
    struct sk_index_result result = {.capacity = 40, .rows = rows, .scores = scores};
    struct sk_index_check_report report;
    struct sk_index_writer writer = {.write = write_nothing};
    struct sk_diag d = {0};
    bool has_more = true;
    if (sk_index_check(index, &report, &d) != SK_ERR_OK) {
        fprintf(stderr, "loaded, but: %s\n", d.text);
        abort();
    }
    SK_CHECK(sk_index_reader_new(&reader, index, NULL) == SK_ERR_OK);
    (void)!sk_index_search(index, reader, &query, &result, NULL);
    sk_index_reader_destroy(&reader);
    for (uint32_t row = 0; row < 4; row++)
        (void)!sk_index_insert(index, row, sk_index_watermark(index) + 1, vector, NULL);
    for (unsigned i = 0; i < 50 && has_more; i++)
        if (sk_index_step(index, 100, NULL, SK_INDEX_STEP_EAGER, &has_more, NULL) != SK_ERR_OK)
            break;
    (void)!sk_index_checkpoint_write(index, &writer, NULL);
    if (sk_index_check(index, &report, &d) != SK_ERR_OK) {
        fprintf(stderr, "after use: %s\n", d.text);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    const struct sk_index_params params = {.kind = SK_INDEX_HNSW,
                                           .metric = SK_METRIC_L2,
                                           .dim = DIM,
                                           .m = 4,
                                           .ef_construction = 16,
                                           .seed = 1,
                                           .memory_bytes_max = 8 << 20,
                                           .isa = "scalar"};
    const struct sk_index_source source = {.fetch = fetch};
    struct sk_index *index = NULL;
    uint32_t image_bytes;
    if (size < sizeof image_bytes)
        return 0;
    memcpy(&image_bytes, bytes, sizeof image_bytes);
    bytes += sizeof image_bytes;
    size -= sizeof image_bytes;
    if (image_bytes > size)
        image_bytes = (uint32_t)size;
    struct image image = {.at = bytes, .left = image_bytes};
    struct sk_index_image_reader reader = {.impl = &image, .read = read_image};
    enum sk_err err = image_bytes == 0
                          ? sk_index_new(&index, &params, &source, NULL)
                          : sk_index_checkpoint_read(&index, &params, &source, &reader, NULL);
    if (err == SK_ERR_OK && size > image_bytes)
        err = apply(index, bytes + image_bytes, size - image_bytes);
    if (err == SK_ERR_OK)
        err = sk_index_load_finish(index, NULL, NULL);
    if (err == SK_ERR_OK)
        use(index);
    sk_index_destroy(&index);
    return 0;
}
