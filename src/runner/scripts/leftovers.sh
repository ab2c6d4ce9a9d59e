# Counts the processes of this machine beside its first one, this shell and its parent, the host's own. Only builtins, so
# that it starts no process itself. A zombie has ended and waits for its parent only.
set -u
others=0
init=hidden
for entry in /proc/[0-9]*; do
  pid=${entry#/proc/}
  [ "$pid" = 1 ] && init=seen && continue
  if [ "$pid" = "$$" ] || [ "$pid" = "$PPID" ]; then continue; fi
  # It may end while it is looked at.
  { read -r stat < "$entry/stat"; } 2>/dev/null || continue
  case ${stat##*) } in Z*) continue ;; esac
  others=$((others + 1))
done
echo "init=$init"
echo "others=$others"
