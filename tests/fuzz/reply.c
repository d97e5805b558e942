/* links: skerry_static */
/* A node's reply as the C client reads it: hits, records, JSON; and JSON that a user typed. */
#include "proto/client/skerry.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <zmq.h>

struct skerry_reply *sk_reply_new_message(void *zmq_message);

static struct skerry_reply *reply_of(const uint8_t *bytes, size_t size)
{
    zmq_msg_t message;
    SK_CHECK(zmq_msg_init_size(&message, size) == 0);
    if (size > 0)
        memcpy(zmq_msg_data(&message), bytes, size);
    struct skerry_reply *reply = sk_reply_new_message(&message);
    SK_CHECK(reply != NULL);
    return reply;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct skerry_error error;
    struct skerry_hits *hits = NULL;
    struct skerry_records *records = NULL;
    struct skerry_bytes packed = {0};
    struct skerry_reply *reply = reply_of(bytes, size);
    uint64_t number;
    char *json = skerry_reply_json(reply);
    skerry_text_free(&json);
    (void)skerry_reply_error(reply, &error);
    (void)skerry_reply_u64(reply, "took_us", &number);
    (void)skerry_reply_hits(&reply, &hits, &error);
    skerry_hits_free(&hits);
    skerry_reply_free(&reply);
    reply = reply_of(bytes, size);
    (void)skerry_reply_records(&reply, &records, &error);
    skerry_records_free(&records);
    skerry_reply_free(&reply);
    if (skerry_json_to_msgpack((const char *)bytes, size, &packed, &error) == SKERRY_OK) {
        SK_CHECK(skerry_msgpack_to_json(packed, &json, &error) == SKERRY_OK);
        skerry_text_free(&json);
        skerry_bytes_free(&packed);
    }
    return 0;
}
