/* Between the files of the simulated client. */
#ifndef SK_SIM_CLIENT_PARTS_H
#define SK_SIM_CLIENT_PARTS_H

#include "tests/sim/client.h"

enum {
    ERR_INVALID = 2,
    ERR_BUSY = 4,
    ERR_EXISTS = 6,
    ERR_DEADLINE = 10,
    ERR_UNAVAILABLE = 11,
    ERR_NOT_FOUND = 12,
    ERR_DISK_FULL = 13
};

struct model *client_model(const struct sim_client *self);
uint64_t client_below(struct sim_client *self, uint64_t bound);
bool client_chance(struct sim_client *self, unsigned per_mille);

/* client_ask.c: each opens one question. */
void client_begin(struct sim_client *self, enum client_kind kind,
                  struct model_collection *collection);
uint32_t client_deadline(struct sim_client *self);
void client_ask(struct sim_client *self, const msgpack_sbuffer *frame);
uint32_t client_request(const struct sim_client *self); /* of a write, as the model knows it */
void client_send_create(struct sim_client *self, struct model_collection *c);
void client_send_upsert(struct sim_client *self, struct model_collection *c);
void client_send_delete(struct sim_client *self, struct model_collection *c);
void client_send_set_payload(struct sim_client *self, struct model_collection *c);
void client_send_get(struct sim_client *self, struct model_collection *c, bool all);
void client_send_search(struct sim_client *self, struct model_collection *c,
                        int exact); /* -1: any */
void client_begin_scroll(struct sim_client *self, struct model_collection *c);
void client_send_scroll(struct sim_client *self, const msgpack_object *cursor);
void client_send_count(struct sim_client *self, struct model_collection *c);
void client_send_look(struct sim_client *self, struct model_collection *c, unsigned look);
const char *client_look_name(const struct sim_client *self);

/* client_check.c: each judges the answer to the open question. */
uint64_t client_number_of(const msgpack_object *value); /* UINT64_MAX: not one */
bool client_fits(const struct sim_client *self, const struct model_write *write);
void client_check_get(struct sim_client *self, const msgpack_object *map);
void client_check_search(struct sim_client *self, const msgpack_object *map);
bool client_check_scroll(struct sim_client *self, const msgpack_object *map); /* true: goes on */
void client_check_count(struct sim_client *self, const msgpack_object *map);
void client_check_look(struct sim_client *self, const msgpack_object *map);

/* client_scratch.c. false: it rests. c only stands for a collection in the open question. */
bool client_scratch_act(struct sim_client *self, struct model_collection *c);
void client_scratch_on_ok(struct sim_client *self, uint64_t count);
void client_scratch_on_error(struct sim_client *self, unsigned code, const char *message);
void client_scratch_on_unknown(struct sim_client *self);

#endif
