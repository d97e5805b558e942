/* links: sk_shell */
/* A connection of an ipc door: the same bytes at once and in pieces must be answered in the same way, and
 * leave nothing behind. The first byte chooses the pieces and whether both handshakes are there already. */
#include "common/shell/internal.h"
#include "common/shell/zmtp.h"
#include "proto/pack.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sk_reactor *reactor;
static struct sk_socket *door;

static void on_client(void *core, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame)
{
    (void)core;
    (void)role;
    (void)key;
    sk_socket_send(reactor, from, &frame, 1);
}

static void start(void)
{
    const struct sk_reactor_config config = {.drain_max = 3};
    struct sk_diag d = {0};
    SK_CHECK(sk_reactor_new(&reactor, &config, &d) == SK_ERR_OK);
    sk_reactor_set_core(reactor, &(struct sk_reactor_core){.on_client = on_client});
    SK_CHECK(sk_socket_make(&door, reactor, SK_SOCKET_DOOR, &d) == SK_ERR_OK);
    door->door = (struct sk_reactor_door){
        .takes_clients = true, .links = {{"worker", 4, 10}}, .link_count = 1};
    reactor->scratch = malloc(SK_IPC_SCRATCH_BYTES);
    SK_CHECK(reactor->scratch != NULL);
}

/* A turn of the loop and what comes of it. */
static void turn(int fd, struct sk_buffer *answer)
{
    uint8_t bytes[4096];
    ssize_t got;
    do {
        sk_loop_once(&reactor->loop, false);
        sk_connections_look(reactor);
        sk_connections_flush(reactor);
        sk_ipc_reap(reactor);
        while ((got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
            sk_buffer_append(answer, bytes, (size_t)got);
    } while (reactor->held != NULL);
}

/* seed 0: in one piece. */
static void talk(struct sk_buffer *answer, struct sk_span all, unsigned seed)
{
    int pair[2];
    bool is_whole = seed == 0;
    SK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    SK_CHECK(sk_connection_new(door, pair[0]) != NULL);
    for (size_t at = 0; at < all.size;) {
        size_t left = all.size - at, size = 1 + (seed >> 16) % 23;
        size = is_whole || size > left ? left : size;
        if (send(pair[1], all.bytes + at, size, MSG_NOSIGNAL) != (ssize_t)size)
            break; /* it was closed */
        at += size;
        seed = seed * 1103515245 + 12345;
        turn(pair[1], answer);
    }
    turn(pair[1], answer);
    close(pair[1]);
    for (unsigned i = 0; i < 3; i++) {
        sk_loop_once(&reactor->loop, false);
        sk_connections_look(reactor);
        sk_connections_flush(reactor);
        sk_ipc_reap(reactor);
    }
    SK_CHECK(reactor->connection_count == 0 && reactor->in_bytes == 0 && reactor->out_bytes == 0);
    SK_CHECK(reactor->gone_count <= 4);
    reactor->gone_count = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_buffer all = {0}, at_once = {0}, in_pieces = {0};
    uint8_t head[SK_ZMTP_READY_BYTES_MAX];
    if (size == 0 || size > 16384)
        return 0;
    if (reactor == NULL)
        start();
    door->bytes_max = 8192;
    if ((bytes[0] & 1) != 0) {
        sk_zmtp_greeting(head);
        sk_buffer_append(&all, head, SK_ZMTP_GREETING_BYTES);
        sk_buffer_append(&all, head, sk_zmtp_ready(head, "DEALER", (struct sk_span){0}));
    }
    sk_buffer_append(&all, bytes + 1, size - 1);
    talk(&at_once, sk_buffer_span(&all), 0);
    talk(&in_pieces, sk_buffer_span(&all), bytes[0] + 1U);
    SK_CHECK(at_once.size == in_pieces.size &&
             (at_once.size == 0 || memcmp(at_once.bytes, in_pieces.bytes, at_once.size) == 0));
    sk_buffer_deinit(&all);
    sk_buffer_deinit(&at_once);
    sk_buffer_deinit(&in_pieces);
    return 0;
}
