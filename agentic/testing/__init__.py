"""What tests of programs and of stores need: real servers, and waiting for conditions."""
