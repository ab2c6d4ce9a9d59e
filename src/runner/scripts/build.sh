# Makes the folders that every job expects.
set -eu
umask 022
cd "$HOME"
mkdir -p work output input .local/bin .config .janebot
chmod 700 .janebot
