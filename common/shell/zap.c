#include "common/shell/zap.h"

#include "common/shell/internal.h"
#include "common/shell/log.h"

#include <pthread.h>
#include <stdlib.h>

enum { ZAP_FRAMES_MIN = 6, CURVE_KEY_BYTES = 32 };

struct sk_zap {
    zactor_t *actor;
    zsock_t *handler; /* the actor's, once it runs */
    pthread_mutex_t mutex;
    struct sk_map_key *keys; /* ordered by public key */
    uint32_t count;
    bool is_loaded;
    uint64_t refused;
};

static int compare_keys(const void *a, const void *b)
{
    const struct sk_map_key *left = a, *right = b;
    return strcmp(left->public_key, right->public_key);
}

static int compare_key(const void *public_key, const void *key)
{
    return strcmp(public_key, ((const struct sk_map_key *)key)->public_key);
}

enum sk_role sk_zap_role(struct sk_zap *self, const char *public_key)
{
    enum sk_role role = SK_ROLE_NONE;
    pthread_mutex_lock(&self->mutex);
    if (self->count > 0) {
        const struct sk_map_key *key =
            bsearch(public_key, self->keys, self->count, sizeof self->keys[0], compare_key);
        if (key != NULL)
            role = key->role;
    }
    pthread_mutex_unlock(&self->mutex);
    return role;
}

uint64_t sk_zap_refused(struct sk_zap *self)
{
    pthread_mutex_lock(&self->mutex);
    uint64_t refused = self->refused;
    pthread_mutex_unlock(&self->mutex);
    return refused;
}

enum sk_err sk_zap_set(struct sk_zap *self, const struct sk_map_key *keys, uint32_t count,
                       struct sk_diag *d)
{
    struct sk_map_key *copy = malloc((count + 1) * sizeof *copy);
    if (copy == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u keys", count);
    if (count > 0)
        memcpy(copy, keys, count * sizeof *copy);
    qsort(copy, count, sizeof *copy, compare_keys);
    pthread_mutex_lock(&self->mutex);
    struct sk_map_key *old = self->keys;
    self->keys = copy;
    self->count = count;
    bool is_first = !self->is_loaded;
    self->is_loaded = true;
    pthread_mutex_unlock(&self->mutex);
    free(old);
    if (is_first)
        zsock_send(self->actor, "s", "LOADED");
    return SK_ERR_OK;
}

/* ---- the handler's thread ---- */

/* RFC 27: version, request id, domain, address, identity, mechanism, credentials. */
static bool is_admitted(struct sk_zap *self, zmsg_t *request, char *user)
{
    zframe_t *frame = zmsg_first(request); /* version */
    bool is_sound = zmsg_size(request) >= ZAP_FRAMES_MIN + 1 && zframe_streq(frame, "1.0");
    for (unsigned i = 1; is_sound && i < ZAP_FRAMES_MIN; i++)
        frame = zmsg_next(request);
    if (!is_sound || !zframe_streq(frame, "CURVE"))
        return false;
    frame = zmsg_next(request);
    if (zframe_size(frame) != CURVE_KEY_BYTES ||
        zmq_z85_encode(user, zframe_data(frame), CURVE_KEY_BYTES) == NULL)
        return false;
    return sk_zap_role(self, user) != SK_ROLE_NONE;
}

static void answer(struct sk_zap *self)
{
    char user[SK_Z85_KEY_BYTES] = "";
    zmsg_t *request = zmsg_recv(self->handler);
    if (request == NULL)
        return;
    bool is_let_in = is_admitted(self, request, user);
    if (!is_let_in) {
        pthread_mutex_lock(&self->mutex);
        self->refused++;
        pthread_mutex_unlock(&self->mutex);
        sk_log(SK_LEVEL_WARN, "client_refused", "reason=\"key not in the list\"");
    }
    zmsg_first(request);
    zframe_t *id = zmsg_next(request); /* NULL: an empty frame goes back */
    zframe_t *id_copy = id == NULL ? zframe_new_empty() : zframe_dup(id);
    zsock_send(self->handler, "sfssss", "1.0", id_copy, is_let_in ? "200" : "400",
               is_let_in ? "OK" : "this key is not known here", is_let_in ? user : "", "");
    zframe_destroy(&id_copy);
    zmsg_destroy(&request);
}

static void run_handler(zsock_t *pipe, void *arg)
{
    struct sk_zap *self = arg;
    zsock_signal(pipe, 0);
    /* The first key set, or the end: until then handshakes wait. */
    char *word = zstr_recv(pipe);
    bool is_ended = word == NULL || strcmp(word, "$TERM") == 0;
    zstr_free(&word);
    zpoller_t *poller = zpoller_new(pipe, self->handler, NULL);
    while (!is_ended && poller != NULL) {
        void *which = zpoller_wait(poller, -1);
        if (which == self->handler)
            answer(self);
        else if (which == pipe || zpoller_terminated(poller))
            is_ended = true;
    }
    zpoller_destroy(&poller);
    zsock_destroy(&self->handler);
}

enum sk_err sk_zap_new(struct sk_zap **out, struct sk_diag *d)
{
    *out = NULL;
    struct sk_zap *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the list of keys");
    pthread_mutex_init(&self->mutex, NULL);
    sk_reactor_context();
    self->handler = zsock_new(ZMQ_REP);
    if (self->handler == NULL || zsock_bind(self->handler, "inproc://zeromq.zap.01") != 0) {
        zsock_destroy(&self->handler);
        pthread_mutex_destroy(&self->mutex);
        free(self);
        return sk_fail(d, SK_ERR_UNAVAILABLE, "there is a ZAP handler in this process already");
    }
    self->actor = zactor_new(run_handler, self);
    SK_CHECK(self->actor != NULL); /* CZMQ ends the process itself where it cannot */
    *out = self;
    return SK_ERR_OK;
}

void sk_zap_destroy(struct sk_zap **self_ref)
{
    struct sk_zap *self = *self_ref;
    if (self == NULL)
        return;
    zactor_destroy(&self->actor);
    pthread_mutex_destroy(&self->mutex);
    free(self->keys);
    free(self);
    *self_ref = NULL;
}
