/* The simulated clients' own way to speak the protocol: msgpack-c only, nothing of proto/, so that
 * a mistake in our codec cannot hide from them. */
#ifndef SK_SIM_WIRE_H
#define SK_SIM_WIRE_H

#include <msgpack.h>
#include <stdbool.h>
#include <stdint.h>

struct wire_reply {
    msgpack_unpacked unpacked;
    uint64_t id;
    bool is_ok;
    unsigned code; /* of the error */
    char message[160];
};

/* Opens {"v":1,"op":op,"id":id,"deadline_ms":..,"collection":..} with room for `more` further
 * fields; collection NULL leaves that one out. */
void wire_begin(msgpack_packer *to, const char *op, uint64_t id, uint32_t deadline_ms,
                const char *collection, unsigned more);
void wire_text(msgpack_packer *to, const char *text);
/* false: not one reply map of the protocol. End a decoded one with wire_reply_end. */
bool wire_reply_decode(struct wire_reply *out, const uint8_t *bytes, size_t size);
void wire_reply_end(struct wire_reply *reply);
/* A member of a map; NULL when there is none. */
const msgpack_object *wire_member(const msgpack_object *map, const char *name);
bool wire_is(const msgpack_object *value, const char *text);

#endif
