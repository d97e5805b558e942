# Completion for skerry(1): the command itself knows its words.
_skerry()
{
    local current=${COMP_WORDS[COMP_CWORD]} words
    words=$("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
    case $current in
        -*) ;;
        *) words=$(grep -v '^-' <<<"$words") ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
# Where it has no word to offer, a file is meant.
complete -o bashdefault -o default -F _skerry skerry
