"""The hosts of a job, from SageMaker's resourceconfig.json."""

import pytest
from ml import write_config

from lorry.container.hosts import read_hosts
from lorry.distributed.hosts import Hosts
from lorry.errors import UserError

TWO = {"current_host": "algo-2", "hosts": ["algo-2", "algo-1"], "network_interface_name": "eth0"}


def test_without_a_file_there_is_one_host(root):
    assert read_hosts(root) == Hosts()


def test_one_host_needs_no_port_and_no_interface(root):
    write_config(root, resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"})
    assert read_hosts(root) == Hosts(("algo-1",), "algo-1")


def test_the_instance_type_is_known_where_sagemaker_says_it(root):
    write_config(root, resourceconfig=TWO | {"current_instance_type": "ml.g4dn.xlarge"})
    assert read_hosts(root).instance == "ml.g4dn.xlarge"
    one = {"current_host": "algo-1", "hosts": ["algo-1"], "current_instance_type": "ml.g5.xlarge"}
    write_config(root, resourceconfig=one)
    assert read_hosts(root).instance == "ml.g5.xlarge"


def test_several_hosts_have_one_order_everywhere(root):
    write_config(root, resourceconfig=TWO)
    hosts = read_hosts(root)
    assert hosts == Hosts(("algo-1", "algo-2"), "algo-2", "eth0", 7777)
    assert (hosts.number, hosts.several) == (1, True)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000])
def test_a_file_that_is_no_json_object(root, text):
    write_config(root, resourceconfig=text)
    with pytest.raises(UserError, match=r"resourceconfig\.json"):
        read_hosts(root)


@pytest.mark.parametrize("resources", [{"hosts": ["algo-1"]}, {"current_host": "algo-1", "hosts": "algo-1"}])
def test_hosts_that_the_toolkit_could_not_read(root, resources):
    write_config(root, resourceconfig=resources)
    with pytest.raises(UserError, match=r"resourceconfig\.json lacks hosts or current_host"):
        read_hosts(root)


def test_a_host_that_is_none_of_the_job(root):
    write_config(root, resourceconfig=TWO | {"current_host": "algo-3"})
    with pytest.raises(UserError, match="the current host algo-3 is not among the hosts algo-2, algo-1"):
        read_hosts(root)


def test_a_channel_of_which_every_host_gets_a_part_is_refused(root):
    channels = {"train": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}}
    write_config(root, inputdataconfig=channels)
    write_config(root, resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"]})
    assert not read_hosts(root).several, "one host gets all of it"
    write_config(root, resourceconfig=TWO)
    with pytest.raises(UserError, match="channel train is ShardedByS3Key"):
        read_hosts(root)
