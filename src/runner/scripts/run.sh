# Starts the agent. Arguments: the environment file (`-` for none), then program and arguments. Input: the agent's own.
set -eu
if [ "$1" != - ]; then
  . "$HOME/$1"
  rm -f "$HOME/$1"
fi
shift
export JANEBOT_OUTPUT="$HOME/output"
mkdir -p "$HOME/work" "$HOME/output"
cd "$HOME/work"
for word; do
  shift
  case $word in "~/"*) word="$HOME/${word#"~/"}" ;; esac
  set -- "$@" "$word"
done
exec "$@"
