"""The search for α, γ and λ of one domain."""
