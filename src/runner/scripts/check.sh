# Leaves the job's canary and its files. Argument: the canary's name. Input: lines of mode, path and base64 content.
set -eu
umask 077
boot
mkdir -p "$HOME/.janebot"
: > "$HOME/.janebot/$1"
: > "${TMPDIR:-/tmp}/$1"
while read -r mode path content; do
  file="$HOME/$path"
  mkdir -p "${file%/*}"
  printf %s "$content" | base64 -d > "$file"
  chmod "$mode" "$file"
done
echo ready
