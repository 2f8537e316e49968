"""Text <-> items: template packs, rendering, SID tokens in a vocabulary, branches, parsing of answers."""

# Packs shipped with sidereal; any path to a YAML file of the same shape is accepted as well.
PACKS = {
    "chat": "packs/chat.yaml",
    "instruction": "packs/instruction.yaml",
    "plain": "packs/plain.yaml",
}
