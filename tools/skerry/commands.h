/* Every command, one object each; main.c lists them. */
#ifndef SK_TOOLS_COMMANDS_H
#define SK_TOOLS_COMMANDS_H

#include "tools/skerry/cli.h"

extern const struct cli_command cli_node_start, cli_node_stop, cli_node_status;
extern const struct cli_command cli_collection_create, cli_collection_list, cli_collection_describe,
    cli_collection_drop, cli_collection_alter;
extern const struct cli_command cli_import, cli_export;
extern const struct cli_command cli_search, cli_get, cli_delete, cli_count;
extern const struct cli_command cli_topology, cli_stats, cli_info, cli_top;
extern const struct cli_command cli_keys_list, cli_keys_add, cli_keys_make, cli_keys_revoke;
extern const struct cli_command cli_snapshot, cli_restore, cli_wait, cli_verify, cli_compact;
extern const struct cli_command cli_bench;

#endif
