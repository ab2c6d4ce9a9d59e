# Looks for what should not and what should be there. Arguments: names of canary files.
set -u
boot
canary=absent
for name; do
  if [ -e "$HOME/.janebot/$name" ] || [ -e "${TMPDIR:-/tmp}/$name" ]; then canary=present; fi
done
echo "canary=$canary"
probe="$HOME/.janebot/probe"
if echo probe > "$probe" 2>/dev/null && read -r word < "$probe" && [ "$word" = probe ]; then
  echo disk=ok
else
  echo disk=full
fi
rm -f "$probe"
if [ -f "$HOME/.janebot/agents" ]; then
  while read -r name size version; do
    if [ "$(stat -c %s "$HOME/.local/bin/$name" 2>/dev/null)" = "$size" ]; then
      echo "agent:$name=$version"
    else
      echo "agent:$name=changed"
    fi
  done < "$HOME/.janebot/agents"
fi
