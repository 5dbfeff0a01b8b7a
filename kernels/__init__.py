"""Update rules and the launches that apply them to lists of tensors."""
