/* What the operations (node.c, records.c) share. Not installed. */
#ifndef SK_CLIENT_FIELDS_H
#define SK_CLIENT_FIELDS_H

#include "proto/client/internal.h"

void sk_frame_begin_for(struct sk_frame *frame, const char *op, const char *collection);
/* Nothing is written for NULL, or for 0. */
void sk_fields_text(struct sk_frame *frame, const char *name, const char *text);
void sk_fields_u32(struct sk_frame *frame, const char *name, uint32_t value);

enum skerry_code sk_fields_check_collection(const char *collection, struct skerry_error *error);
enum skerry_code sk_fields_check_reserved(const uint64_t *reserved, size_t count,
                                          struct skerry_error *error);

/* The call, unless code (of the making of the frame) is an error already. The frame is taken. */
enum skerry_code sk_call_for_reply(struct skerry *self, struct sk_frame *frame,
                                   enum skerry_code code, uint32_t deadline_ms,
                                   struct skerry_reply **out, struct skerry_error *error);
enum skerry_code sk_call_for_nothing(struct skerry *self, struct sk_frame *frame,
                                     enum skerry_code code, uint32_t deadline_ms,
                                     struct skerry_error *error);

#endif
