"""What vendors say: endpoints, answers, errors, and what is learned from them."""
