/* What `topology`, `top` and `stats` share: reading the node's own description of itself. The
 * members are those of the replies `topology` and `stats`; what is missing counts as nothing. */
#ifndef SK_TOOLS_WATCH_H
#define SK_TOOLS_WATCH_H

#include "tools/skerry/cli.h"

/* The reply of an operation without fields as JSON, owned; NULL when it fails. */
enum skerry_code watch_fetch(struct skerry *db, const char *op, json_t **out,
                             struct skerry_error *error);

/* Processor time of a process since `before` (an array of processes, may be NULL), of one core. */
double watch_cpu_share(const json_t *process, const json_t *before, double seconds);
/* Each returns out. */
const char *watch_process_name(const json_t *process, char *out, size_t size);
const char *watch_index_text(const json_t *index, char *out, size_t size);
void watch_vectors_text(const json_t *vectors, char *out, size_t size);

void watch_print_bar(double share);
void watch_print_head(const json_t *topology); /* two lines */
/* A table of operations: requests, errors and quantiles of their time, of the reply `stats`; since
 * the earlier reply `before` with rates, or since the start where before is NULL. */
void watch_print_requests(const json_t *stats, const json_t *before, double seconds);

#endif
