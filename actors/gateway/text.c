#include "actors/gateway/text.h"
#include "common/base/utf8.h"

#include <stdio.h>

static void put(struct sk_buffer *to, const char *text)
{
    sk_buffer_append(to, text, strlen(text));
}

void sk_text_head(struct sk_buffer *to, const char *name, const char *type, const char *help)
{
    put(to, "# HELP ");
    put(to, name);
    put(to, " ");
    put(to, help);
    put(to, "\n# TYPE ");
    put(to, name);
    put(to, " ");
    put(to, type);
    put(to, "\n");
}

/* Only \\, \" and \n may and must be escaped. */
static void put_escaped(struct sk_buffer *to, struct sk_span value)
{
    bool is_utf8 = sk_utf8_valid(value);
    for (size_t i = 0; i < value.size; i++) {
        uint8_t byte = value.bytes[i];
        if (byte == '\\')
            put(to, "\\\\");
        else if (byte == '"')
            put(to, "\\\"");
        else if (byte == '\n')
            put(to, "\\n");
        else if (byte < ' ' || byte == 0x7F || (byte > 0x7F && !is_utf8))
            put(to, "?");
        else
            sk_buffer_append(to, &byte, 1);
    }
}

static void put_sample(struct sk_buffer *to, const char *name, const char *suffix,
                       const struct sk_label *labels, unsigned label_count, const char *value)
{
    put(to, name);
    put(to, suffix);
    for (unsigned i = 0; i < label_count; i++) {
        put(to, i == 0 ? "{" : ",");
        put(to, labels[i].name);
        put(to, "=\"");
        put_escaped(to, labels[i].value);
        put(to, "\"");
    }
    put(to, label_count > 0 ? "} " : " ");
    put(to, value);
    put(to, "\n");
}

void sk_text_u64(struct sk_buffer *to, const char *name, const char *suffix,
                 const struct sk_label *labels, unsigned label_count, uint64_t value)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    put_sample(to, name, suffix, labels, label_count, text);
}

void sk_text_f64(struct sk_buffer *to, const char *name, const char *suffix,
                 const struct sk_label *labels, unsigned label_count, double value)
{
    char text[40];
    (void)snprintf(text, sizeof text, "%.12g", value);
    put_sample(to, name, suffix, labels, label_count, text);
}
