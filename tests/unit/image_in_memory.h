/* An image of an index in memory, for tests that write and read them. */
#ifndef SK_TESTS_IMAGE_IN_MEMORY_H
#define SK_TESTS_IMAGE_IN_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct image {
    uint8_t *bytes;
    size_t size, capacity, at;
    size_t fail_at; /* write fails beyond; 0: never */
};

static inline bool write_image(void *impl, const void *bytes, size_t size)
{
    struct image *image = impl;
    if (image->fail_at != 0 && image->size + size > image->fail_at)
        return false;
    if (image->size + size > image->capacity) {
        image->capacity = (image->size + size) * 2;
        image->bytes = realloc(image->bytes, image->capacity);
    }
    memcpy(image->bytes + image->size, bytes, size);
    image->size += size;
    return true;
}

static inline bool read_image(void *impl, void *bytes, size_t size)
{
    struct image *image = impl;
    if (image->size - image->at < size)
        return false;
    memcpy(bytes, image->bytes + image->at, size);
    image->at += size;
    return true;
}

#endif
