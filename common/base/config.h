/* Settings: one list gives the struct, the parser, --help, --print-config and deploy/skerry.conf.
 *
 * A file holds lines `key = value`; '#' begins a comment. A variable SKERRY_<KEY> (upper case) wins
 * over the file. An unknown key is an error that names the closest one there is. Settings are read
 * once, when the node starts: the supervisor hands what it has read to its processes, so that one
 * that is started again has the same as the others, whatever became of the file.
 *
 * SK_SETTING(key, kind, default, min, max, "unit", "help")
 *   u32, u64   a number in min..max; with unit "bytes" a suffix K, M, G or T (powers of 1,024) is
 * fine choice     one of the words that stand in `unit`, divided by '|' text       min..max bytes
 *   core       "auto" (-1), "off" (-2) or the number of a CPU core up to max */
#ifndef SK_CONFIG_H
#define SK_CONFIG_H

#include "common/base/err.h"

#include <stdint.h>
#include <stdio.h>

enum { SK_CONFIG_TEXT_BYTES = 256, SK_CONFIG_FILE_BYTES_MAX = 65536 };
enum { SK_CORE_AUTO = -1, SK_CORE_OFF = -2 };

#define SK_SETTINGS(SK_SETTING)                                                                    \
    SK_SETTING(client_address, text, "0.0.0.0", 1, 64, "address",                                  \
               "where clients from elsewhere connect to (CURVE); 127.0.0.1: this machine only")    \
    SK_SETTING(client_port, u32, 7420, 0, 65535, "port", "0 takes a free one; see run/node.json")  \
    SK_SETTING(http_address, text, "127.0.0.1", 1, 64, "address",                                  \
               "where metrics and health are served; no authentication there")                     \
    SK_SETTING(http_port, u32, 7421, 0, 65535, "port", "0 takes a free one; see run/node.json")    \
    SK_SETTING(workers, u32, 1, 1, 64, "processes", "shard-workers; shards are spread over them")  \
    SK_SETTING(search_threads, u32, 1, 1, 64, "threads", "a worker's threads for long searches")   \
    SK_SETTING(                                                                                    \
        wakeup_latency, choice, "adaptive", 0, 0, "adaptive|off|always",                           \
        "keep cores awake through /dev/cpu_dma_latency: while requests come, never, always")       \
    SK_SETTING(wakeup_idle_ms, u32, 2000, 10, 600000, "ms",                                        \
               "quiet time after which adaptive lets cores sleep again")                           \
    SK_SETTING(                                                                                    \
        query_core, core, "auto", 0, 1023, "core",                                                 \
        "core that router and workers share; auto: one only where wakeup_latency cannot be had")   \
    SK_SETTING(                                                                                    \
        memory_bytes_max, u64, "0", 0, 1ULL << 46, "bytes",                                        \
        "indexes of one collection, where it has no budget of its own; 0: half of the memory")     \
    SK_SETTING(kernels, choice, "auto", 0, 0, "auto|scalar|avx2|avx512|neon",                      \
               "set of vector kernels; auto takes the best that this machine has")                 \
    SK_SETTING(requests_in_flight_max, u32, 4096, 1, 16384, "requests",                            \
               "of all clients; past it the answer is busy")                                       \
    SK_SETTING(clients_max, u32, 4096, 1, 100000, "connections",                                   \
               "open files are allowed accordingly")                                               \
    SK_SETTING(heartbeat_timeout_ms, u32, 30000, 1000, 3600000, "ms",                              \
               "a process that has said nothing for so long is killed and started again")          \
    SK_SETTING(restart_backoff_ms_max, u32, 10000, 100, 600000, "ms",                              \
               "the longest pause before a process that keeps ending is started again")            \
    SK_SETTING(stop_timeout_ms, u32, 20000, 100, 600000, "ms",                                     \
               "a clean stop; what has not ended then is killed")                                  \
    SK_SETTING(log_level, choice, "info", 0, 0, "debug|info|warn|error", "what is printed")        \
    SK_SETTING(log_bytes_max, u64, "16M", 0, 1ULL << 40, "bytes",                                  \
               "log/node.log past it becomes node.log.1, in place of the one before; 0: no limit")

#define SK_CONFIG_TYPE_u32(key) uint32_t key
#define SK_CONFIG_TYPE_u64(key) uint64_t key
#define SK_CONFIG_TYPE_choice(key) char key[SK_CONFIG_TEXT_BYTES]
#define SK_CONFIG_TYPE_text(key) char key[SK_CONFIG_TEXT_BYTES]
#define SK_CONFIG_TYPE_core(key) int32_t key

struct sk_config {
#define SK_CONFIG_MEMBER(key, kind, ...) SK_CONFIG_TYPE_##kind(key);
    SK_SETTINGS(SK_CONFIG_MEMBER)
#undef SK_CONFIG_MEMBER
};

void sk_config_init(struct sk_config *self); /* the defaults */
/* INVALID: out of range ("client_port: 70000, want 0..65535 port"), UNKNOWN_FIELD with the closest
 * key. d->field is the key. */
SK_CHECKED enum sk_err sk_config_set(struct sk_config *self, const char *key, const char *value,
                                     struct sk_diag *d);
/* text is NUL-terminated; name stands in errors: "NAME:12: ...". */
SK_CHECKED enum sk_err sk_config_parse(struct sk_config *self, const char *name, const char *text,
                                       struct sk_diag *d);
/* NOT_FOUND when there is no such file; TOO_LARGE, INVALID, UNKNOWN_FIELD. */
SK_CHECKED enum sk_err sk_config_read_file(struct sk_config *self, const char *path,
                                           struct sk_diag *d);
/* SKERRY_<KEY> of every key that is set in the environment; other names are not ours. */
SK_CHECKED enum sk_err sk_config_read_environment(struct sk_config *self, struct sk_diag *d);
/* The other way: every setting into the environment, for processes that are to have the same. */
SK_CHECKED enum sk_err sk_config_write_environment(const struct sk_config *self, struct sk_diag *d);
void sk_config_print_help(FILE *to);   /* key, default, range, unit, help: for --help */
void sk_config_print_sample(FILE *to); /* deploy/skerry.conf: every key, commented out */
void sk_config_print(FILE *to, const struct sk_config *self); /* the effective one, as a file */

#endif
