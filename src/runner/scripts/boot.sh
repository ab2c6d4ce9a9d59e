# What tells one boot of the machine from another: kernel boot, process namespace, age of its first process, mount of
# the root, and the host's own word for the run where it gives one. A restore must change it.
boot() {
  read -r kernel < /proc/sys/kernel/random/boot_id || kernel=
  space=$(readlink /proc/self/ns/pid) || space=
  read -r first < /proc/1/stat || first=
  age=$(set -- ${first##*) }; shift 19 2>/dev/null && printf %s "$1")
  root=
  while read -r mount _ _ _ point _; do [ "$point" = / ] && root=$mount; done < /proc/self/mountinfo
  printf 'boot=%s\n' "$kernel/$space/$age/$root/${SPRITE_BOOT:-}"
}
