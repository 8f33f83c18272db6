"""What `deepspeed` launches: one rank of a training run. `deepspeed scripts/train.py CONFIG [--key value ...]`"""

from mmchat.cli.train import train_main

if __name__ == "__main__":
    train_main()
