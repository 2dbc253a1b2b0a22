"""Rate allocation: which directions and which storage a byte budget buys, layer by layer."""
