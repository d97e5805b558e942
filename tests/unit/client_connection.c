/* links: skerry_static PkgConfig::ZMQ */
/* libskerry: deadlines, many requests in flight, nodes that are not there, forks, CURVE. */
#include "tests/unit/client_fake.h"

static void an_answer_that_never_comes_ends_at_the_deadline(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0, started_ms = now_ms();
    assert_int_equal(skerry_count(db, "silent", NULL, 100, &count, &error), SKERRY_DEADLINE);
    assert_in_range(now_ms() - started_ms, 100, 1500);
    assert_true(error.retriable);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

static void frames_that_are_no_reply_are_dropped(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0;
    assert_int_equal(skerry_count(db, "garbage", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

struct caller {
    struct skerry *db;
    unsigned failures;
    pthread_t thread;
};

static void *call_often(void *arg)
{
    struct caller *caller = arg;
    for (unsigned i = 0; i < 500; i++) {
        struct skerry_error error = {0};
        uint64_t count = 0;
        caller->failures += skerry_count(caller->db, i % 7 == 0 ? "garbage" : "docs", NULL, 20000,
                                         &count, &error) != SKERRY_OK ||
                            count == 0;
    }
    return NULL;
}

static void many_threads_share_a_handle(void **state)
{
    struct caller callers[8] = {0};
    struct skerry *db = connect_to(*state);
    for (unsigned i = 0; i < 8; i++) {
        callers[i].db = db;
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].failures, 0);
    }
    skerry_close(&db);
}

static void *call_held(void *arg)
{
    struct caller *caller = arg;
    uint64_t count = 0;
    caller->failures =
        skerry_count(caller->db, "hold", NULL, 20000, &count, NULL) != SKERRY_OK || count == 0;
    return NULL;
}

/* A slow request of one thread holds nobody up, and replies in another order find their callers. */
static void requests_in_flight_do_not_wait_for_each_other(void **state)
{
    struct fake *fake = *state;
    struct caller callers[6] = {0};
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    uint64_t count = 0;
    for (unsigned i = 0; i < 6; i++) {
        callers[i].db = db;
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_held, &callers[i]), 0);
    }
    for (unsigned requests = 0; requests < 7; usleep(1000))
        requests = requests_seen(fake);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    assert_int_equal(skerry_count(db, "release", NULL, 0, &count, &error), SKERRY_OK);
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].failures, 0);
    }
    skerry_close(&db);
}

static void submitted_requests_end_once_each_in_any_order(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    static const float query[2] = {1, 0};
    struct skerry_search search = {.collection = "hold", .vectors = query, .dim = 2};
    uint64_t tickets[64], ticket = 0, count = 0, seen = 0;
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(skerry_search_submit(db, &search, &tickets[i], &error), SKERRY_OK);
    assert_int_equal(skerry_in_flight(db), 64);
    assert_int_equal(skerry_poll(db, 20, &ticket, &reply, &error), SKERRY_OK);
    assert_null(reply);
    assert_int_equal(skerry_count(db, "release", NULL, 0, &count, &error), SKERRY_OK);
    for (unsigned i = 0; i < 64; i++) {
        assert_int_equal(skerry_poll(db, 5000, &ticket, &reply, &error), SKERRY_OK);
        assert_non_null(reply);
        assert_true(skerry_reply_u64(reply, "count", &count) && count == ticket);
        assert_in_range(ticket, tickets[0], tickets[63]);
        assert_false(seen >> (ticket - tickets[0]) & 1);
        seen |= UINT64_C(1) << (ticket - tickets[0]);
        skerry_reply_free(&reply);
    }
    assert_int_equal(skerry_in_flight(db), 0);
    assert_int_equal(skerry_poll(db, 5000, &ticket, &reply, &error), SKERRY_OK);
    assert_null(reply);
    skerry_close(&db);
}

static void a_submitted_request_without_an_answer_ends_with_deadline(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    uint64_t ticket = 0, ended = 0;
    struct skerry_bytes fields = {"\x81\xaa"
                                  "collection\xa6"
                                  "silent",
                                  19};
    assert_int_equal(skerry_submit(db, "count", fields, 50, &ticket, &error), SKERRY_OK);
    assert_int_equal(skerry_poll(db, 3000, &ended, &reply, &error), SKERRY_OK);
    assert_non_null(reply);
    assert_int_equal(ended, ticket);
    assert_int_equal(skerry_reply_error(reply, &error), SKERRY_DEADLINE);
    skerry_reply_free(&reply);
    skerry_close(&db);
}

static void a_node_that_ends_ends_what_is_on_its_way_and_comes_back(void **state)
{
    struct fake *fake = *state;
    struct caller caller = {.db = connect_to(fake)};
    struct skerry_error error = {0};
    uint64_t count = 0, started_ms = now_ms();
    assert_int_equal(pthread_create(&caller.thread, NULL, call_held, &caller), 0);
    for (unsigned requests = 0; requests < 2; usleep(1000))
        requests = requests_seen(fake);
    fake_stop(fake);
    pthread_join(caller.thread, NULL);
    assert_int_equal(caller.failures, 1);
    assert_in_range(now_ms() - started_ms, 0, 5000); /* not its deadline of 20 s */
    started_ms = now_ms();
    assert_int_equal(skerry_count(caller.db, "docs", NULL, 300, &count, &error),
                     SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_in_range(now_ms() - started_ms, 250, 2500);
    fake->request_count = 0;
    fake->held_count = 0;
    fake_start(fake);
    assert_int_equal(skerry_count(caller.db, "docs", NULL, 5000, &count, &error), SKERRY_OK);
    assert_int_equal(requests_seen(fake),
                     1); /* neither the lost nor the failed one was sent again */
    skerry_close(&caller.db);
}

static void a_node_that_is_not_there_is_named(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    struct skerry_options options = {.connect_deadline_ms = 200};
    assert_null(skerry_connect("/nowhere/at/all", NULL, &error));
    assert_int_equal(error.code, SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_null(skerry_connect("/tmp", NULL, &error));
    assert_non_null(strstr(error.message, "skerry node start --dir /tmp"));
    assert_null(skerry_connect("ipc:///tmp/skerry-nobody.ipc", &options, &error));
    assert_int_equal(error.code, SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_null(skerry_connect("tcp://127.0.0.1:1", &options, &error));
    assert_non_null(strstr(error.message, "server_key"));
    char path[400];
    memset(path, 'x', sizeof path);
    memcpy(path, "ipc:///", 7);
    path[200] = '\0';
    assert_null(skerry_connect(path, &options, &error));
    assert_int_equal(error.code, SKERRY_TOO_LARGE);
    (void)fake;
}

static void a_handle_does_not_pass_a_fork(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0;
    pid_t child = fork();
    if (child == 0) {
        bool is_refused = skerry_count(db, "docs", NULL, 0, &count, &error) == SKERRY_INVALID;
        skerry_close(&db);
        _exit(is_refused && strstr(error.message, "fork") != NULL ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

/* ---- CURVE ---- */

static struct skerry *connect_curve(const struct fake *fake, const char *server_key,
                                    struct skerry_error *error)
{
    char public_key[41], secret_key[41];
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    struct skerry_options options = {.server_key = server_key,
                                     .public_key = public_key,
                                     .secret_key = secret_key,
                                     .connect_deadline_ms = 5000};
    return skerry_connect(fake->endpoint, &options, error);
}

static void a_known_key_gets_in_over_curve(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    struct skerry *db = connect_curve(fake, fake->server_public, &error);
    uint64_t count = 0;
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

static void a_key_that_is_not_known_is_told_so_at_once(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    uint64_t started_ms = now_ms();
    fake->is_key_known = false;
    assert_null(connect_curve(fake, fake->server_public, &error));
    assert_int_equal(error.code, SKERRY_UNAUTHORIZED);
    assert_non_null(strstr(error.message, "not known"));
    assert_in_range(now_ms() - started_ms, 0, 3000);
}

static void a_wrong_server_key_is_told_from_a_node_that_is_not_there(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    char public_key[41], secret_key[41];
    uint64_t started_ms = now_ms();
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    assert_null(connect_curve(fake, public_key, &error));
    assert_int_equal(error.code, SKERRY_UNAUTHORIZED);
    assert_non_null(strstr(error.message, "server key"));
    assert_in_range(now_ms() - started_ms, 0, 3000);
}

static void a_key_file_that_others_may_read_is_refused(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    char path[] = "/tmp/skerry-key-XXXXXX", public_key[41], secret_key[41];
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    dprintf(fd, "# a client\npublic-key = \"%s\"\nsecret-key = \"%s\"\n", public_key, secret_key);
    struct skerry_options options = {.server_key = fake->server_public, .key_file = path};
    struct skerry *db = skerry_connect(fake->endpoint, &options, &error);
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    skerry_close(&db);
    assert_int_equal(fchmod(fd, 0640), 0);
    assert_null(skerry_connect(fake->endpoint, &options, &error));
    assert_non_null(strstr(error.message, "chmod 600"));
    assert_int_equal(fchmod(fd, 0600), 0);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_null(skerry_connect(fake->endpoint, &options, &error));
    assert_non_null(strstr(error.message, "secret-key"));
    close(fd);
    unlink(path);
}

int main(void)
{
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define CURVE(name) cmocka_unit_test_setup_teardown(name, set_up_curve, tear_down)
    const struct CMUnitTest tests[] = {
        LOCAL(an_answer_that_never_comes_ends_at_the_deadline),
        LOCAL(frames_that_are_no_reply_are_dropped),
        LOCAL(many_threads_share_a_handle),
        LOCAL(requests_in_flight_do_not_wait_for_each_other),
        LOCAL(submitted_requests_end_once_each_in_any_order),
        LOCAL(a_submitted_request_without_an_answer_ends_with_deadline),
        LOCAL(a_node_that_ends_ends_what_is_on_its_way_and_comes_back),
        LOCAL(a_node_that_is_not_there_is_named),
        LOCAL(a_handle_does_not_pass_a_fork),
        CURVE(a_known_key_gets_in_over_curve),
        CURVE(a_key_that_is_not_known_is_told_so_at_once),
        CURVE(a_wrong_server_key_is_told_from_a_node_that_is_not_there),
        CURVE(a_key_file_that_others_may_read_is_refused),
    };
    return cmocka_run_group_tests_name("client: connection", tests, NULL, NULL);
}
