"""The ST-DiT-2 network, its diffusion mathematics and its training loop. Knows no infrastructure."""
