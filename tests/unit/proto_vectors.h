/* Reads the files of tests/vectors, and shows msgpack as the JSON that is written there. */
#ifndef SK_TESTS_PROTO_VECTORS_H
#define SK_TESTS_PROTO_VECTORS_H

#include "proto/pack.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VECTORS_MAX = 256, LINES_MAX = 24 };

struct vector {
    char *title;
    char *keys[LINES_MAX]; /* the first word of each line */
    char *rest[LINES_MAX]; /* what follows it, "" where nothing does */
    size_t line_count;
};

struct vector_file {
    char *text; /* owned */
    struct vector vectors[VECTORS_MAX];
    size_t count;
};

static inline void vector_file_read(struct vector_file *self, const char *name)
{
    char path[512];
    memset(self, 0, sizeof *self);
    (void)snprintf(path, sizeof path, "%s/tests/vectors/%s", SK_SOURCE_DIR, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size_t size = (size_t)ftell(file);
    rewind(file);
    self->text = malloc(size + 1);
    assert_non_null(self->text);
    assert_int_equal(fread(self->text, 1, size, file), size);
    self->text[size] = '\0';
    (void)fclose(file);
    struct vector *at = NULL;
    for (char *line = self->text, *next; line != NULL && *line != '\0'; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        if (line[0] == '[') {
            assert_true(self->count < VECTORS_MAX);
            at = &self->vectors[self->count++];
            at->title = line + 1;
            line[strlen(line) - 1] = '\0';
        } else if (line[0] != '#' && line[0] != '\0') {
            assert_non_null(at);
            assert_true(at->line_count < LINES_MAX);
            char *rest = line + strcspn(line, " ");
            if (*rest != '\0')
                *rest++ = '\0';
            rest += strspn(rest, " ");
            at->keys[at->line_count] = line;
            at->rest[at->line_count++] = rest;
        }
    }
    assert_true(self->count > 0);
}

/* What follows key in this vector; NULL when it has no such line. */
static inline char *vector_line(const struct vector *self, const char *key)
{
    for (size_t i = 0; i < self->line_count; i++)
        if (strcmp(self->keys[i], key) == 0)
            return self->rest[i];
    return NULL;
}

/* Exactly as many bytes as the text says, on the heap, so that a read past the end is seen. Stops
 * at the first character that is no hex digit. The caller frees. */
static inline struct sk_span hex_bytes(const char *hex)
{
    size_t size = strspn(hex, "0123456789abcdef") / 2;
    uint8_t *bytes = malloc(size == 0 ? 1 : size);
    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++) {
        char digits[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        bytes[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return sk_span_of(bytes, size);
}

static inline struct sk_span exact_copy(struct sk_span of, size_t size)
{
    uint8_t *bytes = malloc(size == 0 ? 1 : size);
    assert_non_null(bytes);
    if (size > 0)
        memcpy(bytes, of.bytes, size);
    return sk_span_of(bytes, size);
}

static inline void span_free(struct sk_span *span)
{
    free((void *)(uintptr_t)span->bytes);
    *span = (struct sk_span){0};
}

static inline void show(struct sk_buffer *to, const char *text)
{
    sk_buffer_append(to, text, strlen(text));
}

/* Text as JSON in ASCII. */
static inline void show_text(struct sk_buffer *to, struct sk_span text)
{
    char one[16];
    show(to, "\"");
    for (size_t i = 0; i < text.size; i++) {
        uint8_t c = text.bytes[i];
        size_t more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : c >= 0xC0 ? 1 : 0;
        uint32_t point = more == 3 ? c & 7U : more == 2 ? c & 15U : more == 1 ? c & 31U : c;
        for (size_t k = 0; k < more && i + 1 < text.size; k++)
            point = point << 6 | (text.bytes[++i] & 63U);
        if (point > 0xFFFF)
            (void)snprintf(one, sizeof one, "\\u%04x\\u%04x", 0xD800 + ((point - 0x10000) >> 10),
                           0xDC00 + ((point - 0x10000) & 0x3FF));
        else if (point < 32 || point > 126)
            (void)snprintf(one, sizeof one, "\\u%04x", point);
        else
            (void)snprintf(one, sizeof one, point == '"' || point == '\\' ? "\\%c" : "%c",
                           (int)point);
        show(to, one);
    }
    show(to, "\"");
}

static inline void show_number(struct sk_buffer *to, double number)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            break;
    }
    if (strpbrk(text, ".en") == NULL)
        strcat(text, ".0");
    show(to, text);
}

/* One value as JSON; bin as {"$bin":"hex"}. */
static inline void show_value(struct sk_buffer *to, struct sk_reader *from)
{
    struct sk_value value;
    char text[40];
    assert_int_equal(sk_read(from, &value, NULL), SK_ERR_OK);
    switch (value.kind) {
    case SK_VALUE_NIL:
        show(to, "null");
        break;
    case SK_VALUE_BOOL:
        show(to, value.boolean ? "true" : "false");
        break;
    case SK_VALUE_UNSIGNED:
        (void)snprintf(text, sizeof text, "%llu", (unsigned long long)value.u64);
        show(to, text);
        break;
    case SK_VALUE_NEGATIVE:
        (void)snprintf(text, sizeof text, "%lld", (long long)value.i64);
        show(to, text);
        break;
    case SK_VALUE_FLOAT:
        show_number(to, value.f64);
        break;
    case SK_VALUE_TEXT:
        show_text(to, value.span);
        break;
    case SK_VALUE_BIN:
        show(to, "{\"$bin\":\"");
        for (size_t i = 0; i < value.span.size; i++) {
            (void)snprintf(text, sizeof text, "%02x", value.span.bytes[i]);
            show(to, text);
        }
        show(to, "\"}");
        break;
    case SK_VALUE_ARRAY:
    case SK_VALUE_MAP:
        show(to, value.kind == SK_VALUE_MAP ? "{" : "[");
        for (uint32_t i = 0; i < value.count; i++) {
            show(to, i > 0 ? "," : "");
            show_value(to, from);
            if (value.kind == SK_VALUE_MAP) {
                show(to, ":");
                show_value(to, from);
            }
        }
        show(to, value.kind == SK_VALUE_MAP ? "}" : "]");
        break;
    }
}

static inline void assert_shows(struct sk_span packed, const char *json)
{
    struct sk_buffer text = {0};
    struct sk_reader from = sk_reader_of(packed);
    show_value(&text, &from);
    assert_int_equal(sk_reader_left(&from), 0);
    sk_buffer_append(&text, "", 1);
    assert_false(text.is_broken);
    assert_string_equal((const char *)text.bytes, json);
    sk_buffer_deinit(&text);
}

/* A small generator with a seed of its own (SK_SEED replays). */
static inline uint64_t next_random(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15U;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

static inline uint64_t test_seed(void)
{
    const char *seed = getenv("SK_SEED");
    return seed != NULL ? strtoull(seed, NULL, 10) : 1;
}

/* Calls look() with every cut of frame and with every byte of it changed in several ways, each time
 * in a buffer of exactly that size. */
static inline void for_every_wound(struct sk_span frame,
                                   void (*look)(struct sk_span wounded, bool is_cut, void *arg),
                                   void *arg)
{
    static const uint8_t values[] = {0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xDD, 0xDF, 0xFF};
    for (size_t size = 0; size < frame.size; size++) {
        struct sk_span cut = exact_copy(frame, size);
        look(cut, true, arg);
        span_free(&cut);
    }
    for (size_t at = 0; at < frame.size; at++) {
        for (unsigned how = 0; how < 8 + sizeof values; how++) {
            struct sk_span changed = exact_copy(frame, frame.size);
            uint8_t *byte = (uint8_t *)(uintptr_t)changed.bytes + at;
            unsigned value = how < 8 ? *byte ^ (1U << how) : values[how - 8];
            *byte = (uint8_t)value;
            look(changed, false, arg);
            span_free(&changed);
        }
    }
}

#endif
