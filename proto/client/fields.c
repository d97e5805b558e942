/* The fields that several operations share, and their calls. */
#include "proto/client/fields.h"

void sk_fields_text(struct sk_frame *frame, const char *name, const char *text)
{
    if (text == NULL)
        return;
    sk_frame_key(frame, name);
    sk_put_text(&frame->wire, text);
}

void sk_fields_u32(struct sk_frame *frame, const char *name, uint32_t value)
{
    if (value == 0)
        return;
    sk_frame_key(frame, name);
    sk_put_u64(&frame->wire, value);
}

enum skerry_code sk_fields_check_reserved(const uint64_t *reserved, size_t count,
                                          struct skerry_error *error)
{
    for (size_t i = 0; i < count; i++)
        if (reserved[i] != 0)
            return sk_client_fail_field(error, SKERRY_INVALID, "reserved",
                                        "reserved members must be zero: was the struct zeroed?");
    return SKERRY_OK;
}

enum skerry_code sk_fields_check_collection(const char *collection, struct skerry_error *error)
{
    if (collection == NULL)
        return sk_client_fail_field(error, SKERRY_INVALID, "collection", "no collection was named");
    return SKERRY_OK;
}

enum skerry_code sk_call_for_reply(struct skerry *self, struct sk_frame *frame,
                                   enum skerry_code code, uint32_t deadline_ms,
                                   struct skerry_reply **out, struct skerry_error *error)
{
    *out = NULL;
    if (code == SKERRY_OK)
        return sk_connection_call(self, frame, deadline_ms, out, error);
    sk_frame_deinit(frame);
    return code;
}

enum skerry_code sk_call_for_nothing(struct skerry *self, struct sk_frame *frame,
                                     enum skerry_code code, uint32_t deadline_ms,
                                     struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    code = sk_call_for_reply(self, frame, code, deadline_ms, &reply, error);
    skerry_reply_free(&reply);
    return code;
}

void sk_frame_begin_for(struct sk_frame *frame, const char *op, const char *collection)
{
    sk_frame_begin(frame, op);
    sk_fields_text(frame, "collection", collection);
}
