"""`python -m tamperfuse`, which is what `accelerate launch -m tamperfuse …` starts on every process."""

from tamperfuse.cli.app import main

if __name__ == "__main__":
    main()
